"""Video of an episode: the simulator's frames beside frames that are decoded from the plans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mpdiffuser.errors import InputError

PANEL = 256  # px, longer side of a picture
GAP, WIDE_GAP, MARGIN = 8, 28, 16
LINE = 28  # px, height of a text line
BACKGROUND, INK, FAINT = (24, 26, 30), (236, 238, 240), (150, 156, 164)


def write_video(
    file: Path,
    frames: np.ndarray,
    imagined: np.ndarray | None,
    steps_ahead: Sequence[int],
    captions: Sequence[str] | None,
    fps: float,
) -> Path:
    """Write an H.264 MP4 file for browsers. The file appears only when it is complete.

    Args:
        file: the file to write.
        frames: (T, h, w, 3) uint8, of the simulator.
        imagined: (T, K, h', w', 3) uint8, decoded from the plan at each time, drawn as large as the frames; None: no
            plans.
        steps_ahead: (K,), of each decoded frame; 0 is the present.
        captions: (T,), a text line above each frame; None: no captions.
        fps: frames per second.

    Returns:
        The file.

    Raises:
        InputError: if shapes or dtypes are wrong, or ffmpeg is missing or fails.
    """
    _check(frames, imagined, steps_ahead, captions, fps)
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
            for t, frame in enumerate(frames):
                row = () if imagined is None else imagined[t]
                writer.append_data(_compose(frame, row, steps_ahead, captions[t] if captions else None))
        partial.replace(file)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{file}: ffmpeg could not write the video ({str(error).strip()}); install it with "
            "`pip install --force-reinstall imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that has libx264"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def _compose(
    frame: np.ndarray, imagined: Sequence[np.ndarray], steps_ahead: Sequence[int], caption: str | None
) -> np.ndarray:
    """Return one frame of the video, (height, width, 3) uint8 with even height and width."""
    top = LINE if caption is None else 2 * LINE
    high, wide = (max(1, round(PANEL * side / max(frame.shape[:2]))) for side in frame.shape[:2])
    width = 2 * MARGIN + wide + (WIDE_GAP - GAP if len(imagined) else 0) + len(imagined) * (wide + GAP)
    height = top + high + MARGIN
    image = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)

    def place(picture: np.ndarray, label: str, x: int) -> None:
        image.paste(Image.fromarray(picture).resize((wide, high), Image.Resampling.NEAREST), (x, top))
        draw.text((x, top - LINE // 2), label, FAINT, font, "lm")

    if caption is not None:
        draw.text((MARGIN, LINE // 2 + 2), caption, INK, font, "lm")
    place(frame, "simulator", MARGIN)
    for i, (picture, k) in enumerate(zip(imagined, steps_ahead)):
        place(picture, f"imagined {f'+{k}' if k else 'now'}", MARGIN + wide + WIDE_GAP + i * (wide + GAP))
    return np.asarray(image)


def _check(
    frames: np.ndarray,
    imagined: np.ndarray | None,
    steps_ahead: Sequence[int],
    captions: Sequence[str] | None,
    fps: float,
) -> None:
    for name, array, ndim, shape in (
        ("frames", frames, 4, "(T, h, w, 3)"),
        ("imagined", imagined, 5, "(T, K, h, w, 3)"),
    ):
        if array is None:
            continue
        if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3 or not array.size:
            raise InputError(f"{name}: must be {shape} uint8, found {array.shape} {array.dtype}")
    if imagined is not None and imagined.shape[:2] != (len(frames), len(steps_ahead)):
        raise InputError(
            f"imagined: must have {len(frames)} times and {len(steps_ahead)} pictures each, found {imagined.shape[:2]}"
        )
    if captions is not None and len(captions) != len(frames):
        raise InputError(f"captions: must be {len(frames)}, one a frame; found {len(captions)}")
    if not fps > 0:
        raise InputError(f"fps: must be positive, found {fps}")
