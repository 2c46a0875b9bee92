"""Pictures in files of other formats. They are read when they are needed, in blocks, so they need not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpdiffuser.errors import InputError
from mpdiffuser.memory import check_memory

BLOCK = 2**24  # bytes of pictures that are read at once


@dataclass(frozen=True)
class Source:
    """The pictures of one file.

    Args:
        rows: (k,), the rows of the dataset that get the pictures, in the order of `read`.
        read: called with a number n; yields the pictures n, n + 1, ... k - 1 in blocks (b, height, width, 3) uint8.
    """

    rows: np.ndarray
    read: Callable[[int], Iterator[np.ndarray]]


class StoredPictures:
    """The pictures (M, height, width, 3) uint8 of a dataset's rows, in files of other formats.

    `read` gives them in blocks. Indexing and `numpy.asarray` read all of them into memory, once.

    Args:
        shape: (M, height, width, 3).
        sources: the files; each row is in one of them.
        files: all files that the pictures depend on, also tables that tell which row gets which picture.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shape: tuple[int, ...], sources: Sequence[Source], files: Sequence[Path] = ()) -> None:
        self.shape, self.sources, self.files = shape, list(sources), list(files)
        self._whole: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> "StoredPictures":
        """Return the rows of several arrays of pictures, stored ones or numpy's, one after the other."""
        sources: list[Source] = []
        files: list[Path] = []
        start = 0
        for part in parts:
            stored = (
                part if isinstance(part, cls) else cls(part.shape, [Source(np.arange(len(part)), _blocks_of(part))])
            )
            sources += [Source(start + source.rows, source.read) for source in stored.sources]
            files += stored.files or ([Path(str(part.filename))] if isinstance(part, np.memmap) else [])
            start += len(part)
        return cls((start, *parts[0].shape[1:]), sources, files)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of bytes of all pictures."""
        return int(np.prod(self.shape))

    @property
    def count(self) -> int:
        """The number of pictures that `read` gives."""
        return sum(len(source.rows) for source in self.sources)

    def read(self, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows (b,) and the pictures (b, height, width, 3) of all blocks, without the `first` pictures.

        Raises:
            InputError: if a file is damaged.
        """
        for source in self.sources:
            done, first = min(first, len(source.rows)), max(first - len(source.rows), 0)
            if done == len(source.rows):
                continue
            for block in source.read(done):
                if block.shape[1:] != self.shape[1:]:  # the file was replaced after it was opened
                    raise InputError(f"pictures: found one of shape {block.shape[1:]}, expected {self.shape[1:]}")
                yield source.rows[done : done + len(block)], block
                done += len(block)
            if done < len(source.rows):
                raise InputError(f"pictures: found {done}, expected {len(source.rows)}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._whole is None:
            check_memory("dataset", "pictures", int(np.prod(self.shape)))
            whole = np.empty(self.shape, np.uint8)
            for rows, block in self.read():
                whole[rows] = block
            self._whole = whole
        return self._whole if dtype is None else self._whole.astype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self)[index]


def _blocks_of(array: np.ndarray) -> Callable[[int], Iterator[np.ndarray]]:
    count = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))

    def read(first: int) -> Iterator[np.ndarray]:
        for start in range(first, len(array), count):
            yield array[start : start + count]

    return read
