"""Arrays of HDF5 and npz files, checked before they are read: can the file hold the shape that it claims?

Every reader of other projects' files uses these functions. Nothing is executed (no pickle), nothing outside the file is
read (no links, no external or virtual datasets), and an array is read only if the file holds all of its bytes.
"""

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpdiffuser.errors import InputError

EXPANSION = 1100  # deflate, the compression of both formats, expands a byte to 1032 at most
SMALL = 64 * 2**20  # bytes; memory for so many is allocated without this check
MAGIC = {b"\x89HDF\r\n\x1a\n": "hdf5", b"PK\x03\x04": "npz"}


@dataclass(frozen=True)
class Entry:
    """An array that has not been read: its claimed shape and type, and how many bytes the file holds of it."""

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
def open_arrays(file: str | Path, nested: bool = False) -> Iterator[dict[str, Entry]]:
    """The arrays of an HDF5 or npz file by name.

    Args:
        nested: also those in groups, as "group/name"; otherwise groups are left out.

    Raises:
        InputError: if the file is missing, of another kind, or points at other files; if it is damaged, which may be
            found only when an array is read.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with contextlib.ExitStack() as stack:
        with guard(file):
            kind = file_kind(file)
            if kind == "hdf5":
                data = stack.enter_context(h5py.File(file, "r"))
                entries = dict(_hdf5_entries(file, data, nested))
            elif kind == "npz":
                entries = _npz_entries(file, stack.enter_context(zipfile.ZipFile(file)))
            else:
                raise InputError(f"{file}: found {file.stat().st_size} bytes that are neither HDF5 nor npz")
        yield entries


@contextlib.contextmanager
def guard(file: str | Path) -> Iterator[None]:
    """Re-raises every exception of a parser as InputError, with the name of the file."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{file}: no permission to read it ({error}); change its permissions") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{file}: damaged or truncated ({reason}); get it again") from error


def _hdf5_entries(
    file: Path, group: h5py.Group, nested: bool, prefix: str = "", seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Entry]]:
    for key in group:
        name, link = f"{prefix}{key}", group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            where = f"{getattr(link, 'filename', '')}:{link.path}"
            raise InputError(f"{file}: {name}: a link to {where}, which may lead anywhere; store the array itself")
        found = group[key]
        if isinstance(found, h5py.Dataset):
            yield name, _hdf5_entry(file, name, found)
        elif isinstance(found, h5py.Group) and nested:
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                raise InputError(f"{file}: {name}: a group that contains itself; get the file again")
            yield from _hdf5_entries(file, found, nested, f"{name}/", seen | {address})


def _hdf5_entry(file: Path, name: str, dataset: h5py.Dataset) -> Entry:
    if dataset.external or dataset.is_virtual:
        others = [part[0] for part in dataset.external or []] or [part.file_name for part in dataset.virtual_sources()]
        raise InputError(f"{file}: {name}: lies in other files ({others[0]}); store the array itself")
    stored = dataset.id.get_storage_size()

    def load() -> np.ndarray:
        with guard(file):
            if dataset.chunks:
                wanted = math.prod(-(-size // part) for size, part in zip(dataset.shape, dataset.chunks))
                there, unit = dataset.id.get_num_chunks(), "chunks"
                check_claim(file, f"{name}: a chunk", dataset.chunks, dataset.dtype, stored)
            else:
                wanted, there, unit = dataset.size * dataset.dtype.itemsize, stored, "bytes"
            if there != wanted:
                raise InputError(f"{file}: {name}: must have {wanted:,} {unit}, found {there:,}; get it again")
            return np.asarray(dataset[()])

    return Entry(dataset.shape or (), dataset.dtype, stored, load)


def _npz_entries(file: Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
    def entry(name: str) -> Entry:
        info = archive.getinfo(name)
        numpys = name.endswith(".npy") and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not numpys or names.count(name) > 1:
            raise InputError(f"{file}: {name}: must be a .npy as numpy writes it, stored or deflated, and occur once")
        with archive.open(name) as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
        return Entry(shape, dtype, info.compress_size, lambda: load(name))

    def load(name: str) -> np.ndarray:
        with guard(file), archive.open(name) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end compares the checksum
                raise InputError(f"{file}: {name}: holds more than its shape {array.shape} says; get it again")
            return array

    names = archive.namelist()
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
        dtype: of the result: np.float32, bool or np.uint8.
        shape: the required one; None stands for any size. Where (N,) is required, (N, 1) is accepted.
        cast: whether numbers of another type are accepted and converted.

    Raises:
        InputError: naming file, key, what was found and what was expected: for another shape, another type, a shape
            that the file cannot hold, or a number that is not finite.
    """
    if entry.dtype.kind not in "fiub" or not (cast or entry.dtype == dtype):
        wanted = "numbers" if cast else np.dtype(dtype).name
        raise InputError(f"{file}: {key}: must be an array of {wanted}, found {entry.dtype}")
    check_shape(file, key, entry, shape)
    values = entry.load()
    if values.dtype == bool:  # HDF5 returns any byte as a bool
        values = values.view(np.uint8)
    if len(shape) == 1:
        values = values.reshape(-1)
    if dtype is not bool:
        with np.errstate(over="ignore"):
            values = values.astype(dtype, copy=False)
    check_finite(file, key, values)
    if (dtype is bool or entry.dtype == bool) and ((values != 0) & (values != 1)).any():
        raise InputError(f"{file}: {key}: must be true or false, 1 or 0, found other values")
    return values.astype(dtype, copy=False)


def check_shape(file: str | Path, key: str, entry: Entry, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an entry has the required shape (see `read_array`) and the file can hold it."""
    found = entry.shape[:1] if len(shape) == 1 and entry.shape[1:] == (1,) else entry.shape
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        expected = f"({wanted},) or ({wanted}, 1)" if len(shape) == 1 else f"({wanted})"
        raise InputError(f"{file}: {key}: must have shape {expected}, found {entry.shape}")
    check_claim(file, key, entry.shape, entry.dtype, entry.stored)


def check_claim(file: str | Path, key: str, shape: tuple[int, ...], dtype: np.dtype, stored: int) -> None:
    """Raise InputError for an array that claims more than `stored` bytes of the file can hold."""
    claimed, there = math.prod(shape) * dtype.itemsize, min(stored, Path(file).stat().st_size)
    if claimed > max(EXPANSION * there, SMALL):
        raise InputError(
            f"{file}: {key}: claims shape {shape}, {claimed:,} bytes; found {there:,} bytes, which cannot hold so many"
        )


def check_finite(file: str | Path, key: str, values: np.ndarray) -> None:
    """Raise InputError for NaN or infinity in values (N, ...), naming the first row that has one."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
    raise InputError(f"{file}: {key}: must be finite, found {values[row]} in row {row}")
