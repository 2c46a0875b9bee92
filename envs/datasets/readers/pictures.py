"""Pictures in the arrays of HDF5 and npz files, checked at once and read later."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.datasets.readers.arrays import Entry, check_shape, open_arrays
from mpdiffuser.errors import InputError
from mpdiffuser.pictures import Source

HEIGHT_FIRST, CHANNELS_FIRST = (0, 1, 2, 3), (0, 2, 3, 1)


def check_pictures(file: Path, key: str, entry: Entry, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an entry has pictures of a shape (see `check_shape`)."""
    check_shape(file, key, entry, shape)
    if entry.dtype != np.uint8:
        raise InputError(f"{file}: {key}: must be an array of uint8, found {entry.dtype}")


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
