"""Videos, read back with ffmpeg."""

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from evaluation.video import GAP, LINE, MARGIN, PANEL, SMALL, WIDE_GAP, Film, write_video
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
    """The simulator on the left; beside it what is imagined above what came, as long as the episode lasts."""
    frames, imagined = pictures(6), pictures(6, 2)
    film = Film(frames, [f"time {t}" for t in range(6)], imagined, (2, 4))
    file = write_video(tmp_path / "new" / "video.mp4", [film], 12.5)
    video, info = read(file)
    assert file == tmp_path / "new" / "video.mp4"
    assert list(file.parent.iterdir()) == [file]
    assert (info["codec"], info["fps"], info["pix_fmt"].split("(")[0]) == ("h264", 12.5, "yuv420p")
    assert len(video) == 6
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    top, first = 2 * LINE, MARGIN + PANEL + WIDE_GAP
    for t in range(6):
        places = {(top + PANEL // 2, MARGIN + PANEL // 2): frames[t]}
        for i, k in enumerate((2, 4)):
            x = first + i * (SMALL + GAP) + SMALL // 2
            places[top + SMALL // 2, x] = imagined[t, i]
            if t + k < 6:
                places[top + SMALL + LINE + SMALL // 2, x] = frames[t + k]
        for (y, x), expected in places.items():
            np.testing.assert_allclose(video[t, y, x].astype(int), expected[0, 0], atol=12)
    assert video[5, top + SMALL + LINE + SMALL // 2, first + SMALL // 2].max() < 60  # the episode is over


def test_what_came_where_not_every_decision_is_shown() -> None:
    film = Film(pictures(3), None, pictures(3, 1), (4,), every=2)
    came = np.asarray(film.draw(0))[LINE + SMALL + LINE + SMALL // 2, MARGIN + PANEL + WIDE_GAP + SMALL // 2]
    np.testing.assert_array_equal(came, COLORS[2])


@pytest.mark.parametrize("planned", [False, True])
def test_two_films(tmp_path: Path, planned: bool) -> None:
    """With plans they are below each other, else side by side. The shorter one keeps its last picture."""
    long, short = (Film(pictures(n), None, pictures(n, 1) if planned else None, (2,) * planned) for n in (3, 1))
    video, _ = read(write_video(tmp_path / "video.mp4", [long, short], 10))
    high, wide = LINE + PANEL + MARGIN, PANEL + 2 * MARGIN + planned * (WIDE_GAP + SMALL)
    assert video.shape == (3, high * (1 + planned), wide * (2 - planned), 3)
    first, second = (LINE + PANEL // 2, MARGIN + PANEL // 2), (high * planned, wide * (1 - planned))
    for t in range(3):
        for (y, x), expected in ((first, COLORS[t]), (np.add(first, second), COLORS[0])):
            np.testing.assert_allclose(video[t, y, x].astype(int), expected, atol=12)


def test_captions_and_labels_are_drawn() -> None:
    frames = pictures(1).repeat(2, 0)
    pictured = {
        name: [np.asarray(Film(frames, ["one", "two"], frames[:, None], (ahead,)).draw(t)).astype(int) for t in (0, 1)]
        for name, ahead in (("a", 0), ("b", 8))
    }
    a, b = pictured["a"], pictured["b"]
    caption, label = slice(0, LINE), slice(LINE, 2 * LINE)
    assert np.abs(a[0][caption] - a[1][caption]).max() > 100
    assert np.abs(a[0][label] - b[0][label]).max() > 80
    assert np.abs(a[0][caption] - b[0][caption]).max() < 30


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="IMAGEIO_FFMPEG_EXE"):
        write_video(tmp_path / "video.mp4", [Film(pictures(2))], 25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": pictures(2).astype(float)}, "frames: .*float64"),
        ({"frames": pictures(0)}, "frames: "),
        ({"imagined": pictures(3, 1)}, "imagined: .*2 times"),
        ({"steps_ahead": (1, 2)}, "imagined: .*2 pictures"),
        ({"captions": ["one"]}, "captions: .*found 1"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    usual = {"frames": pictures(2), "imagined": pictures(2, 1), "steps_ahead": (0,), "captions": None}
    with pytest.raises(InputError, match=message):
        Film(**(usual | change))


def test_no_film_and_no_rate(tmp_path: Path) -> None:
    for films, rate in (([], 25), ([Film(pictures(2))], 0)):
        with pytest.raises(InputError, match="films, fps: "):
            write_video(tmp_path / "video.mp4", films, rate)


@pytest.mark.parametrize(("height", "width"), [(20, 10), (9, 27)])
def test_pictures_keep_their_shape(height: int, width: int) -> None:
    """A frame that is half as wide as high is drawn so, and decoded pictures of other sizes are shaped as frames."""
    frames = np.full((2, height, width, 3), 250, np.uint8)
    frames[:, :, : width // 2] = COLORS[0]
    image = np.asarray(Film(frames, None, np.full((2, 1, 16, 16, 3), 250, np.uint8), (2,)).draw(0)).astype(int)
    (high, wide), (_, small) = (
        [round(longer * side / max(height, width)) for side in (height, width)] for longer in (PANEL, SMALL)
    )
    assert image.shape == (LINE + high + MARGIN, 2 * MARGIN + wide + WIDE_GAP + small, 3)
    for x, expected in ((MARGIN + wide // 4, COLORS[0]), (MARGIN + 3 * wide // 4, 250), (-MARGIN - small // 2, 250)):
        np.testing.assert_allclose(image[LINE + 4, x], expected, atol=12)
    np.testing.assert_allclose(image[LINE + high - 4, MARGIN + wide // 4], COLORS[0], atol=12)
