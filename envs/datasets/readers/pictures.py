"""Pictures in the arrays of HDF5 and npz files, checked at once and read later."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from envs.datasets.readers.arrays import Entry, check_shape, open_arrays
from mpdiffuser.episodes import KINDS, LONGEST
from mpdiffuser.errors import InputError
from mpdiffuser.pictures import Source
from mpdiffuser.record import LARGEST

HEIGHT_FIRST, CHANNELS_FIRST = (0, 1, 2, 3), (0, 2, 3, 1)
TAKEN = {"observations", *KINDS}  # names of arrays that are no pictures


def camera_names(keys: Sequence[str], short: Callable[[str], str] = str, taken: Collection[str] = ()) -> dict[str, str]:
    """Name the arrays of pictures: letters, digits and _, since they become files.

    Args:
        keys: the names in the files of another format.
        short: returns the part of a key that is its name if the other cameras have other names.
        taken: names of other arrays.

    Returns:
        key -> name.
    """
    names = {key: _name(short(key)) for key in keys}
    if len(set(names.values())) < len(keys) or {"", *TAKEN, *taken} & set(names.values()):
        names = {key: _name(key) for key in keys}
    counts, names_of_others = Counter(names.values()), {"", *TAKEN, *taken}
    for number, (key, name) in enumerate(names.items()):
        if counts[name] > 1 or name in names_of_others:
            names[key] = f"{name[: LONGEST - 8]}_camera{number}"
    return names


def _name(key: str) -> str:
    return re.sub(r"\W", "_", key, flags=re.ASCII)[:LONGEST]


def check_pictures(file: Path, key: str, entry: Entry, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an entry has pictures of a shape (see `check_shape`)."""
    check_shape(file, key, entry, shape)
    if entry.dtype != np.uint8:
        raise InputError(
            f"{file}: {key}: must be an array of uint8, found {entry.dtype}; store pictures as whole numbers 0 to 255"
        )
    if not all(0 < side <= LARGEST for side in entry.shape[1:]):
        raise InputError(f"{file}: {key}: pictures must have 1 to {LARGEST:,} pixels a side, found shape {entry.shape}")


def array_source(
    file: Path, key: str, rows: np.ndarray, numbers: np.ndarray, axes: tuple[int, ...] = HEIGHT_FIRST
) -> Source:
    """Return pictures of an array.

    Args:
        file, key: the file and the array's name in it.
        rows: (k,), the rows of the dataset.
        numbers: (k,), not decreasing: the rows of the array.
        axes: of the array, in the order number, height, width, color.
    """

    def read(first: int) -> Iterator[np.ndarray]:
        with open_arrays(file) as entries:
            begin = int(numbers[first])
            for block in entries[key].blocks(begin):
                stop = int(np.searchsorted(numbers, begin + len(block)))
                if stop > first:
                    yield block[numbers[first:stop] - begin].transpose(axes)
                first, begin = stop, begin + len(block)
                if first == len(numbers):
                    return

    return Source(rows, read)
