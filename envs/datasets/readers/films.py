"""Pictures of films and of encoded files, brought to one size."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.datasets.readers.guard import guard
from mpdiffuser.errors import InputError

MP4 = ["-f", "mp4"]  # ffmpeg must read no other format: a playlist could name other files and addresses
FORMATS = ("PNG", "JPEG")


@dataclass
class Scenes:
    """What is wanted of a film: seconds from its start, (n,) each time with the row (n,) that gets its picture."""

    times: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def film_facts(film: Path) -> tuple[tuple[int, int], float]:
    """(height, width) of a film, and its pictures a second."""
    with _opened(film) as reader:
        facts = reader.get_meta_data()
        (width, height), rate = facts["size"], float(facts["fps"])
    if not 0 < rate < 1e6:
        raise InputError(f"{film}: must have a number of pictures a second, found {rate}; write it again")
    return (height, width), rate


def read_film(film: Path, scenes: Scenes, rate: float, out: np.ndarray) -> None:
    """Write to each row of `out` (rows, height, width, 3) the film's picture that is nearest to its time."""
    numbers = np.floor(np.asarray(scenes.times) * rate + 0.5).astype(np.int64)
    wanted: dict[int, list[int]] = {}
    for number, row in zip(numbers.tolist(), scenes.rows):
        wanted.setdefault(number, []).append(row)
    left, shown = len(wanted), 0
    with _opened(film) as reader:
        for number, picture in enumerate(reader):
            shown += 1
            if number in wanted:
                out[wanted[number]] = _resized(Image.fromarray(picture), out.shape[1:3])
                left -= 1
            if not left:
                return
    raise InputError(
        f"{film}: found {len(wanted) - left} of {len(wanted)} pictures: the table's times lie between "
        f"{min(scenes.times):g} and {max(scenes.times):g} s, the film has {shown} pictures, {rate:g} a second (fps)"
    )


def read_encoded(pictures: Iterable[tuple[Path, bytes]], key: str, size: tuple[int, int], out: np.ndarray) -> None:
    """Write encoded pictures into `out` (rows, height, width, 3). size: (height, width) that they must have."""
    row = 0
    for file, data in pictures:
        if row == len(out):
            raise InputError(f"{file}: {key}: more pictures than rows; the tables are mixed up")
        with guard(file):
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if (picture.height, picture.width) != size or picture.mode not in ("RGB", "L"):
                raise InputError(f"{file}: {key}: must be of {size} pixels, RGB or grey, found {picture}")
            out[row] = _resized(picture.convert("RGB"), out.shape[1:3])
        row += 1
    if row < len(out):
        raise InputError(f"{key}: found {row} pictures for {len(out)} rows; the tables are mixed up")


def _resized(picture: Image.Image, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    return np.asarray(picture if picture.size == (width, height) else picture.resize((width, height)))


@contextlib.contextmanager
def _opened(film: Path) -> Iterator[Any]:
    import imageio.v2 as imageio

    if not film.is_file():
        raise InputError(f"{film}: no such file; expected by the tables")
    reader: Any
    with guard(film), imageio.get_reader(film, format="FFMPEG", input_params=MP4) as reader:  # type: ignore[arg-type]
        yield reader
