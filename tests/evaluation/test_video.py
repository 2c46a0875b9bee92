"""Videos, read back with ffmpeg."""

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from evaluation.video import LINE, MARGIN, PANEL, WIDE_GAP, write_video
from mpdiffuser.errors import InputError

COLORS = np.array([[200, 30, 40], [30, 180, 60], [40, 60, 210]], np.uint8)


def pictures(*shape: int) -> np.ndarray:
    """Flat pictures of (*shape, 16, 16, 3), the colours in turn."""
    count = int(np.prod(shape))
    return np.broadcast_to(COLORS[np.arange(count) % 3][:, None, None], (count, 16, 16, 3)).reshape(*shape, 16, 16, 3)


def read(file: Path) -> tuple[np.ndarray, dict]:
    with imageio.get_reader(file) as reader:
        return np.stack(list(reader.iter_data())), reader.get_meta_data()


def test_pictures_in_their_places(tmp_path: Path) -> None:
    frames, imagined = pictures(6), pictures(6, 2)
    file = write_video(tmp_path / "new" / "video.mp4", frames, imagined, (0, 4), [f"time {t}" for t in range(6)], 12.5)
    video, info = read(file)
    assert file == tmp_path / "new" / "video.mp4"
    assert list(file.parent.iterdir()) == [file]
    assert (info["codec"], info["fps"], info["pix_fmt"].split("(")[0]) == ("h264", 12.5, "yuv420p")
    assert len(video) == 6
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    middle = 2 * LINE + PANEL // 2
    second = MARGIN + PANEL + WIDE_GAP + PANEL // 2
    for t in range(6):
        for x, expected in (
            (MARGIN + PANEL // 2, frames[t]),
            (second, imagined[t, 0]),
            (second + PANEL, imagined[t, 1]),
        ):
            np.testing.assert_allclose(video[t, middle, x].astype(int), expected[0, 0], atol=12)


def test_captions_and_labels_are_drawn(tmp_path: Path) -> None:
    frames = pictures(1).repeat(2, 0)
    imagined = frames[:, None]
    texts = {
        name: read(write_video(tmp_path / f"{name}.mp4", frames, imagined, (steps_ahead,), captions, 10))[0].astype(int)
        for name, steps_ahead, captions in (("a", 0, ["one", "two"]), ("b", 8, ["one", "two"]))
    }
    a, b = texts["a"], texts["b"]
    caption, label = slice(0, LINE), slice(LINE, 2 * LINE)
    assert np.abs(a[0, caption] - a[1, caption]).max() > 100
    assert np.abs(a[0, label] - b[0, label]).max() > 80
    assert np.abs(a[0, caption] - b[0, caption]).max() < 30


def test_frames_alone(tmp_path: Path) -> None:
    video, _ = read(write_video(tmp_path / "video.mp4", pictures(3), None, (), None, 25))
    assert video.shape == (3, LINE + PANEL + MARGIN, PANEL + 2 * MARGIN, 3)


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="IMAGEIO_FFMPEG_EXE"):
        write_video(tmp_path / "video.mp4", pictures(2), None, (), None, 25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": pictures(2).astype(float)}, "frames: .*float64"),
        ({"frames": pictures(0)}, "frames: "),
        ({"imagined": pictures(3, 1)}, "imagined: .*2 times"),
        ({"steps_ahead": (1, 2)}, "imagined: .*2 pictures"),
        ({"captions": ["one"]}, "captions: .*found 1"),
        ({"fps": 0}, "fps: "),
    ],
)
def test_refused(tmp_path: Path, change: dict, message: str) -> None:
    usual = {"frames": pictures(2), "imagined": pictures(2, 1), "steps_ahead": (0,), "captions": None, "fps": 25}
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / "video.mp4", **(usual | change))


@pytest.mark.parametrize(("height", "width"), [(20, 10), (9, 27)])
def test_pictures_keep_their_shape(tmp_path: Path, height: int, width: int) -> None:
    """A frame that is half as wide as high is drawn so, and decoded pictures of other sizes are as large as frames."""
    frames = np.full((2, height, width, 3), 250, np.uint8)
    frames[:, :, : width // 2] = COLORS[0]
    imagined = np.full((2, 1, 16, 16, 3), 250, np.uint8)
    video, _ = read(write_video(tmp_path / "video.mp4", frames, imagined, (2,), None, 10))
    high, wide = (round(PANEL * side / max(height, width)) for side in (height, width))
    assert video.shape[1] - (LINE + high + MARGIN) in (0, 1)
    assert video.shape[2] - (2 * MARGIN + 2 * wide + WIDE_GAP) in (0, 1)
    for x, expected in ((MARGIN + wide // 4, COLORS[0]), (MARGIN + 3 * wide // 4, 250), (-MARGIN - wide // 2, 250)):
        for y in (LINE + 4, LINE + high - 4):
            np.testing.assert_allclose(video[0, y, x].astype(int), expected, atol=12)
