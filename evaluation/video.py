"""Videos of episodes: the simulator's frames, frames that are decoded from the plans, and those that really came."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mpdiffuser.errors import InputError

PANEL = 256  # px, longer side of a frame
GAP, WIDE_GAP, MARGIN = 8, 28, 16
LINE = 28  # px, height of a text line
SMALL = (PANEL - LINE) // 2  # px, longer side of a frame that is imagined, or that came
BACKGROUND, INK, FAINT = (24, 26, 30), (236, 238, 240), (150, 156, 164)


@dataclass(frozen=True)
class Film:
    """An episode.

    Args:
        frames: (T, h, w, 3) uint8, of the simulator.
        captions: (T,), a text line above each frame; None: no captions.
        imagined: (T, K, h', w', 3) uint8, decoded from the plan at each time, drawn in the shape of the frames. Below
            each is the frame that really came, if the episode lasts so long. None: no plans.
        steps_ahead: (K,), decisions from the present to each decoded frame.
        every: decisions between two frames.
        title: stands above the frames.

    Raises:
        InputError: if shapes or dtypes are wrong.
    """

    frames: np.ndarray
    captions: Sequence[str] | None = None
    imagined: np.ndarray | None = None
    steps_ahead: Sequence[int] = ()
    every: int = 1
    title: str = "simulator"

    def __post_init__(self) -> None:
        arrays = (("frames", self.frames, 4, "(T, h, w, 3)"), ("imagined", self.imagined, 5, "(T, K, h, w, 3)"))
        for name, array, ndim, shape in arrays:
            if array is None:
                continue
            if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3 or not array.size:
                raise InputError(f"{name}: must be {shape} uint8, found {array.shape} {array.dtype}")
        count, ahead = len(self.frames), len(self.steps_ahead)
        if self.imagined is not None and self.imagined.shape[:2] != (count, ahead):
            found = self.imagined.shape[:2]
            raise InputError(f"imagined: must have {count} times and {ahead} pictures each, found {found}")
        if self.captions is not None and len(self.captions) != count:
            raise InputError(f"captions: must be {count}, one a frame; found {len(self.captions)}")

    def draw(self, t: int) -> Image.Image:
        """Return the picture at time t; the last one from the end of the episode on."""
        t = min(t, len(self.frames) - 1)
        frame, ahead = self.frames[t], self.steps_ahead if self.imagined is not None else ()
        wide, high = _fit(frame, PANEL)
        small = _fit(frame, SMALL)
        top = LINE if self.captions is None else 2 * LINE
        left = MARGIN + wide + WIDE_GAP  # of the first imagined frame
        width = 2 * MARGIN + wide + (WIDE_GAP - GAP if ahead else 0) + len(ahead) * (small[0] + GAP)
        image = Image.new("RGB", (width, top + high + MARGIN), BACKGROUND)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)

        def place(picture: np.ndarray | None, label: str, x: int, y: int, size: tuple[int, int]) -> None:
            draw.text((x, y - LINE // 2), label, FAINT, font, "lm")
            if picture is not None:
                image.paste(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), (x, y))

        if self.captions is not None:
            draw.text((MARGIN, LINE // 2 + 2), self.captions[t], INK, font, "lm")
        place(frame, self.title, MARGIN, top, (wide, high))
        for i, k in enumerate(ahead):
            x, later = left + i * (small[0] + GAP), t + k // self.every
            came = self.frames[later] if later < len(self.frames) else None
            assert self.imagined is not None
            place(self.imagined[t, i], f"imagined {f'+{k}' if k else 'now'}", x, top, small)
            place(came, "came", x, top + small[1] + LINE, small)
        return image


def _fit(frame: np.ndarray, longer: int) -> tuple[int, int]:
    """Return (width, height) of a frame (h, w, 3) whose longer side is drawn with so many pixels."""
    high, wide = (max(1, round(longer * side / max(frame.shape[:2]))) for side in frame.shape[:2])
    return wide, high


def write_video(file: Path, films: Sequence[Film], fps: float) -> Path:
    """Write an H.264 MP4 file for browsers. The file appears only when it is complete.

    Args:
        file: the file to write.
        films: see `pictures`.
        fps: frames per second.

    Returns:
        The file.

    Raises:
        InputError: if there is no film, or ffmpeg is missing or fails.
    """
    if not films or not fps > 0:
        raise InputError(f"films, fps: must be at least one, and positive; found {len(films)}, {fps}")
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.partial.mp4")
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
        writer: Any = imageio.get_writer(
            partial,
            format="FFMPEG",  # type: ignore[arg-type]
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=2,
            quality=None,
            ffmpeg_log_level="error",
            output_params=["-crf", "20", "-movflags", "+faststart"],
        )
        with writer:
            for picture in pictures(films):
                writer.append_data(picture)
        partial.replace(file)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{file}: ffmpeg could not write the video ({str(error).strip()}); install it with "
            "`pip install --force-reinstall imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that has libx264"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def pictures(films: Sequence[Film]) -> Iterator[np.ndarray]:
    """Yield the frames of a video, (height, width, 3) uint8 with even height and width.

    Films are below each other, or without imagined frames side by side. A shorter one keeps its last picture.
    """
    aside = all(film.imagined is None for film in films)
    for t in range(max(len(film.frames) for film in films)):
        yield _joined([film.draw(t) for film in films], aside)


def _joined(panels: Sequence[Image.Image], aside: bool) -> np.ndarray:
    """Return panels side by side, or below each other, as one picture (height, width, 3) uint8 of even sizes."""
    sizes = np.array([panel.size for panel in panels])
    along = 0 if aside else 1
    size = sizes.max(0)
    size[along] = sizes[:, along].sum()
    image, corner = Image.new("RGB", tuple((size + size % 2).tolist()), BACKGROUND), [0, 0]
    for panel in panels:
        image.paste(panel, (corner[0], corner[1]))
        corner[along] += panel.size[along]
    return np.asarray(image)
