"""Arrays of HDF5 and npz files, looked at before they are read: what a file claims is held against what is in it."""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpdiffuser.errors import InputError

EXPANSION = 1100  # deflate, the filter of both formats, makes of a byte 1032 at most
SMALL = 64 * 2**20  # a claim of so many bytes does no harm
MAGIC = {b"\x89HDF\r\n\x1a\n": "hdf5", b"PK\x03\x04": "npz"}


@dataclass(frozen=True)
class Entry:
    """An array that has not been read: its shape and type as claimed, and the bytes that the file has of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stored: int
    load: Callable[[], np.ndarray]


def file_kind(file: str | Path) -> str | None:
    """ "hdf5", "npz", or None, by the first bytes."""
    with open(file, "rb") as handle:
        start = handle.read(8)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


@contextlib.contextmanager
def open_arrays(file: str | Path) -> Iterator[dict[str, Entry]]:
    """The arrays of an HDF5 or npz file by name; groups, links and pickled objects are left out or refused when read.

    Raises:
        InputError: if the file is missing, of another kind, or damaged, which may show as late as when it is read.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with contextlib.ExitStack() as stack:
        with _guard(file):
            kind = file_kind(file)
            if kind == "hdf5":
                entries = _hdf5_entries(file, stack.enter_context(h5py.File(file, "r")))
            elif kind == "npz":
                entries = _npz_entries(file, stack.enter_context(zipfile.ZipFile(file)))
            else:
                raise InputError(f"{file}: found {file.stat().st_size} bytes that are neither HDF5 nor npz")
        yield entries


@contextlib.contextmanager
def _guard(file: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: damaged or truncated ({error}); get it again") from error


def _hdf5_entries(file: Path, data: h5py.File) -> dict[str, Entry]:
    def entry(dataset: h5py.Dataset) -> Entry:
        return Entry(dataset.shape or (), dataset.dtype, dataset.id.get_storage_size(), lambda: _load(dataset))

    def _load(dataset: h5py.Dataset) -> np.ndarray:
        with _guard(file):
            return np.asarray(dataset[()])

    own = [key for key in data if isinstance(data.get(key, getlink=True), h5py.HardLink)]
    return {key: entry(data[key]) for key in own if isinstance(data[key], h5py.Dataset)}


def _npz_entries(file: Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
    def entry(name: str) -> Entry:
        with archive.open(name) as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
        return Entry(shape, dtype, archive.getinfo(name).compress_size, lambda: _load(name))

    def _load(name: str) -> np.ndarray:
        with _guard(file), archive.open(name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): entry(name) for name in names}


def require(file: str | Path, entries: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise InputError unless all keys are there."""
    missing = [key for key in keys if key not in entries]
    if missing:
        raise InputError(f"{file}: {missing[0]}: no such key; expected {', '.join(keys)}; found {sorted(entries)}")


def read_array(
    file: str | Path, key: str, entry: Entry, dtype: type, shape: tuple[int | None, ...], cast: bool = True
) -> np.ndarray:
    """Read an array and check it.

    Args:
        dtype: to give it in: np.float32, bool or np.uint8.
        shape: wanted; None stands for any size. Where it is (N,), (N, 1) will do.
        cast: whether numbers of another type will do.

    Raises:
        InputError: naming file, key, what was found and what was expected: for another shape, anything but numbers, a
            claim of more than the file can hold, or a number that is not finite.
    """
    if entry.dtype.kind not in "fiub" or not (cast or entry.dtype == dtype):
        wanted = "numbers" if cast else np.dtype(dtype).name
        raise InputError(f"{file}: {key}: must be an array of {wanted}, found {entry.dtype}")
    check_shape(file, key, entry, shape)
    claimed = int(np.prod(entry.shape, dtype=object)) * entry.dtype.itemsize
    if claimed > max(EXPANSION * min(entry.stored, Path(file).stat().st_size), SMALL):
        raise InputError(
            f"{file}: {key}: claims shape {entry.shape}, {claimed:,} bytes; found {entry.stored:,} bytes, which cannot "
            "hold as much"
        )
    values = entry.load()
    if len(shape) == 1:
        values = values.reshape(-1)
    if dtype is not bool:
        with np.errstate(over="ignore"):
            values = values.astype(dtype, copy=False)
    check_finite(file, key, values)
    return values.astype(dtype, copy=False)


def check_shape(file: str | Path, key: str, entry: Entry, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an entry has the shape wanted, as `read_array` takes it."""
    found = entry.shape[:1] if len(shape) == 1 and entry.shape[1:] == (1,) else entry.shape
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        expected = f"({wanted},) or ({wanted}, 1)" if len(shape) == 1 else f"({wanted})"
        raise InputError(f"{file}: {key}: must have shape {expected}, found {entry.shape}")


def check_finite(file: str | Path, key: str, values: np.ndarray) -> None:
    """Raise InputError for NaN or infinity in values (N, ...), naming the first row that has one."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
    raise InputError(f"{file}: {key}: must be finite, found {values[row]} in row {row}")
