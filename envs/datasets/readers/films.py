"""Pictures of films and of encoded files, brought to one size and read later."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.datasets.readers.guard import guard
from mpdiffuser.errors import InputError
from mpdiffuser.pictures import Source

MP4 = ["-f", "mp4"]  # ffmpeg must read no other format: a playlist could name other files and addresses
FORMATS = ("PNG", "JPEG")


def film_facts(film: Path) -> tuple[tuple[int, int], float]:
    """(height, width) of a film, and its pictures a second."""
    with _opened(film) as reader:
        facts = reader.get_meta_data()
        (width, height), rate = facts["size"], float(facts["fps"])
    if not 0 < rate < 1e6:
        raise InputError(f"{film}: must have a number of pictures a second, found {rate}; write it again")
    return (height, width), rate


def film_source(film: Path, times: np.ndarray, rows: np.ndarray, rate: float, size: tuple[int, int]) -> Source:
    """Return pictures of a film: of each time the nearest one.

    Args:
        times: (k,), seconds from the film's start.
        rows: (k,), the rows of the dataset that get the pictures.
        rate: pictures of the film a second.
        size: (height, width), to which they are resized.
    """
    numbers = np.floor(times * rate + 0.5).astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]

    def read(first: int) -> Iterator[np.ndarray]:
        shown = 0
        with _opened(film) as reader:
            for picture in reader:
                stop = int(np.searchsorted(numbers, shown, "right"))
                shown += 1
                if stop > first:
                    yield np.repeat(_resized(Image.fromarray(picture), size)[None], stop - first, 0)
                    first = stop
                if first == len(numbers):
                    return
        found = len(np.unique(numbers[:first]))
        raise InputError(
            f"{film}: found {found} of {len(np.unique(numbers))} pictures: the table's times lie between "
            f"{times.min():g} and {times.max():g} s, the film has {shown} pictures, {rate:g} a second (fps)"
        )

    return Source(rows[order], read)


def encoded_source(
    read: Callable[[], Iterable[tuple[Path, bytes]]],
    key: str,
    count: int,
    found: tuple[int, int],
    size: tuple[int, int],
) -> Source:
    """Return encoded pictures of a dataset's first `count` rows.

    Args:
        read: returns the files and the bytes of all pictures.
        key: their name, for errors.
        count: number of rows.
        found: (height, width) that they must have.
        size: (height, width), to which they are resized.
    """

    def pictures(first: int) -> Iterator[np.ndarray]:
        row = 0
        for file, data in read():
            if row == count:
                raise InputError(f"{file}: {key}: more pictures than rows; the tables are mixed up")
            if row >= first:
                yield _decoded(file, key, data, found, size)[None]
            row += 1
        if row < count:
            raise InputError(f"{key}: found {row} pictures for {count} rows; the tables are mixed up")

    return Source(np.arange(count), pictures)


def _decoded(file: Path, key: str, data: bytes, found: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    with guard(file):
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if (picture.height, picture.width) != found or picture.mode not in ("RGB", "L"):
            raise InputError(f"{file}: {key}: must be of {found} pixels, RGB or grey, found {picture}")
        return _resized(picture.convert("RGB"), size)


def _resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
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
