"""Arrays of HDF5 and npz files, checked before they are read: can the file hold the shape that it claims?

Every reader of other projects' files uses these functions. Nothing is executed (no pickle), nothing outside the file is
read (no HDF5 links, no external or virtual datasets), and an array is read only if the file holds all of its bytes.
Only arrays that are read are judged: an unreadable one that a reader does not use keeps nothing from being read.
"""

import contextlib
import importlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.datasets.readers.guard import guard
from mpdiffuser.errors import InputError
from mpdiffuser.memory import check_memory
from mpdiffuser.pictures import BLOCK

EXPANSION = 1100  # deflate, the compression of both formats, expands a byte to 1032 at most
UNKNOWN = 10**9  # expansion by other filters
SMALL = 64 * 2**20  # bytes; memory for so many is allocated without this check
MAGIC = {b"\x89HDF\r\n\x1a\n": "hdf5", b"PK\x03\x04": "npz"}
DEFLATES = {1, 2, 3, 32000}  # HDF5's filters that expand no more than deflate: deflate, shuffle, fletcher32, LZF
PLUGINS = {307: "BZip2", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard",
           32017: "SZ", 32018: "FCI", 32024: "SZ3", 32026: "Blosc2", 32028: "Sperr"}  # fmt: skip
NUMPYS = "must be a .npy as numpy writes it, stored or deflated, and occur once"


@dataclass(frozen=True)
class Entry:
    """An array that has not been read: its claimed shape and type, and how many bytes the file holds of it.

    Args:
        load: reads all of it.
        blocks: called with a row's number; reads the rows from there on, in blocks.
        expansion: bytes in memory of a byte in the file, at most.
        refused: why it cannot be read; empty where it can.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stored: int
    load: Callable[[], np.ndarray]
    blocks: Callable[[int], Iterator[np.ndarray]]
    expansion: int = EXPANSION
    refused: str = ""

    @property
    def rows_at_once(self) -> int:
        """The number of rows in a block."""
        return max(1, BLOCK // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))

    def check_memory(self, file: Path, name: str, rows: int) -> None:
        """Raise InputError unless so many rows, and a copy of them, fit into the memory."""
        check_memory(file, name, 2 * min(rows, self.shape[0]) * math.prod(self.shape[1:]) * self.dtype.itemsize)


class Entries(dict[str, Entry]):
    """The arrays of a file by name. `groups`: those that were not looked into -> the names in them."""

    def __init__(self, entries: Iterable[tuple[str, Entry]] = (), groups: dict[str, list[str]] | None = None) -> None:
        super().__init__(entries)
        self.groups = groups or {}

    def left_out(self, used: Iterable[str], reason: str) -> dict[str, str]:
        """What is not read: name -> reason in words; `reason` is of arrays that could be read."""
        told = {name: f"a group ({_listed(members)}); {reason}" for name, members in sorted(self.groups.items())}
        for name in sorted(set(self) - set(used)):
            entry = self[name]
            told[name] = entry.refused or f"{entry.dtype} of shape {entry.shape}; {reason}"
        return told


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "empty"


def visible(files: Iterable[Path]) -> list[Path]:
    """Files in the order of their names, without hidden ones such as ._walk.npz and .DS_Store."""
    return sorted(file for file in files if not file.name.startswith("."))


def file_kind(file: str | Path) -> str | None:
    """ "hdf5", "npz", or None, by the first bytes."""
    with open(file, "rb") as handle:
        start = handle.read(8)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


@contextlib.contextmanager
def open_arrays(file: str | Path, nested: bool = False) -> Iterator[Entries]:
    """The arrays of an HDF5 or npz file by name.

    Args:
        nested: also those in groups, as "group/name"; otherwise groups are only named.

    Raises:
        InputError: if the file is missing, locked or of another kind; if it is damaged, which may be found only when an
            array is read.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with contextlib.ExitStack() as stack:
        with guard(file):
            kind = file_kind(file)
            if kind == "hdf5":
                data = stack.enter_context(h5py.File(file, "r"))
                entries = Entries(_hdf5_entries(file, data, nested))
                if not nested:
                    entries.groups = {key: list(data[key]) for key in data if key not in entries}
            elif kind == "npz":
                entries = _npz_entries(file, stack.enter_context(zipfile.ZipFile(file)))
            else:
                raise InputError(f"{file}: found {file.stat().st_size} bytes that are neither HDF5 nor npz")
        yield entries


def _hdf5_entries(
    file: Path, group: h5py.Group, nested: bool, prefix: str = "", seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Entry]]:
    for key in group:
        name, link = f"{prefix}{key}", group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            where = f"{getattr(link, 'filename', '')}:{link.path}"
            yield name, _refused(f"a link to {where}, which may lead anywhere; store the array itself")
            continue
        found = group[key]
        if isinstance(found, h5py.Dataset):
            yield name, _hdf5_entry(file, name, found)
        elif isinstance(found, h5py.Group) and nested:
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                raise InputError(f"{file}: {name}: a group that contains itself; get the file again")
            yield from _hdf5_entries(file, found, nested, f"{name}/", seen | {address})
        elif not isinstance(found, h5py.Group):
            yield name, _refused("a named type, not an array")


def _refused(reason: str, shape: tuple[int, ...] = (), dtype: Any = np.uint8) -> Entry:
    def load(*first: int) -> Any:
        raise InputError(reason)

    return Entry(shape, np.dtype(dtype), 0, load, load, refused=reason)


def _hdf5_entry(file: Path, name: str, dataset: h5py.Dataset) -> Entry:
    if dataset.external or dataset.is_virtual:
        others = [part[0] for part in dataset.external or []] or [part.file_name for part in dataset.virtual_sources()]
        return _refused(f"lies in other files ({others[0]}); store the array itself", dataset.shape, dataset.dtype)
    stored, filters = dataset.id.get_storage_size(), _filters(dataset)
    expansion = EXPANSION if DEFLATES.issuperset(filters) else UNKNOWN

    def read(rows: Any) -> np.ndarray:
        unknown = [code for code in filters if not _filter_works(code)]
        try:
            return np.asarray(dataset[rows])
        except OSError as error:
            if unknown:
                raise InputError(f"{file}: {name}: {_unknown_filter(unknown[0])}") from error
            raise

    def load() -> np.ndarray:
        with guard(file):
            _check_complete(file, name, dataset, entry)
            return read(())

    def blocks(first: int) -> Iterator[np.ndarray]:
        chunk = (dataset.chunks or (1,))[0]
        count = -(-entry.rows_at_once // chunk) * chunk  # whole chunks, so that each is decompressed once
        with guard(file):
            _check_complete(file, name, dataset, entry)
            entry.check_memory(file, name, count)
            while first < len(dataset):
                stop = (first // count + 1) * count
                yield read(slice(first, stop))
                first = stop

    entry = Entry(dataset.shape or (), dataset.dtype, stored, load, blocks, expansion)
    return entry


def _check_complete(file: Path, name: str, dataset: h5py.Dataset, entry: Entry) -> None:
    """Raise InputError unless the file holds all of an array."""
    if dataset.chunks:
        wanted = math.prod(-(-size // part) for size, part in zip(dataset.shape, dataset.chunks))
        there, unit = dataset.id.get_num_chunks(), "chunks"
        check_claim(file, f"{name}: a chunk", replace(entry, shape=dataset.chunks))
    else:
        wanted, there, unit = dataset.size * dataset.id.get_type().get_size(), entry.stored, "bytes"
    if there != wanted:
        raise InputError(f"{file}: {name}: must have {wanted:,} {unit}, found {there:,}; get it again")


def _filters(dataset: h5py.Dataset) -> list[int]:
    """The numbers of the filters that an array's chunks went through."""
    created = dataset.id.get_create_plist()
    return [created.get_filter(number)[0] for number in range(created.get_nfilters())]


def _filter_works(code: int) -> bool:
    if not h5py.h5z.filter_avail(code):
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")  # it registers its filters
    return bool(h5py.h5z.filter_avail(code))


def _unknown_filter(code: int) -> str:
    name = f"{PLUGINS[code]}, filter {code}" if code in PLUGINS else f"filter {code}"
    advice = "pip install hdf5plugin" if code in PLUGINS else "install its HDF5 plugin and set HDF5_PLUGIN_PATH"
    return f"compressed with {name}, which HDF5 reads only with a plugin; {advice}, or write the file with gzip"


def _npz_entries(file: Path, archive: zipfile.ZipFile) -> Entries:
    def entry(name: str) -> Entry:
        info = archive.getinfo(name)
        numpys = name.endswith(".npy") and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        once = counts[name.removesuffix(".npy")] == 1
        try:
            with archive.open(name) as member:
                if not numpys or not once:
                    return _refused(NUMPYS)
                shape, fortran, dtype = _npy_header(member)
        except (MemoryError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
            raise  # the archive itself is damaged
        except (NotImplementedError, RuntimeError):  # another compression, or a password
            return _refused(NUMPYS)
        except Exception as error:  # numpy's header parser raises many types of exceptions
            return _refused(f"damaged or truncated ({type(error).__name__}: {error}"[:300] + "); get it again")

        def blocks(first: int) -> Iterator[np.ndarray]:
            if fortran or dtype.hasobject:
                found.check_memory(file, name.removesuffix(".npy"), shape[0])
                yield load(name)[first:]
                return
            count, width = found.rows_at_once, math.prod(shape[1:]) * dtype.itemsize
            found.check_memory(file, name.removesuffix(".npy"), count)
            with guard(file), archive.open(name) as member:
                _npy_header(member)
                member.seek(member.tell() + first * width)
                for row in range(first, shape[0], count):
                    number = min(count, shape[0] - row)
                    data = member.read(number * width)
                    yield np.frombuffer(data, dtype).reshape(number, *shape[1:])
                if member.read(1):  # reading to the end compares the checksum
                    raise InputError(f"{file}: {name}: holds more than its shape {shape} says; get it again")

        found = Entry(shape, dtype, info.compress_size, lambda: load(name), blocks)
        return found

    def load(name: str) -> np.ndarray:
        with guard(file), archive.open(name) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end compares the checksum
                raise InputError(f"{file}: {name}: holds more than its shape {array.shape} says; get it again")
            return array

    names = archive.namelist()
    counts = Counter(name.removesuffix(".npy") for name in names)
    return Entries((name.removesuffix(".npy"), entry(name)) for name in names)


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether it is in Fortran's order, and the dtype of an .npy; `member` is then at its numbers."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def require(file: str | Path, entries: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise InputError unless all keys are there."""
    missing = [key for key in keys if key not in entries]
    if missing:
        raise InputError(f"{file}: {missing[0]}: no such key; expected {', '.join(keys)}; found {sorted(entries)}")


def read_array(
    file: str | Path,
    key: str,
    entry: Entry,
    dtype: Any,
    shape: tuple[int | None, ...],
    used: np.ndarray | None = None,
    notes: dict[str, str] | None = None,
) -> np.ndarray:
    """Read an array and check it.

    Args:
        dtype: of the result.
        shape: the required one; None stands for any size. Where (N,) is required, (N, 1) is accepted.
        used: (N,) bool, the rows that steps use; None: all. Of the others, those that are not finite become 0.
        notes: gets an entry for `key` where float32 does not tell the numbers of a column apart.

    Raises:
        InputError: naming file, key, what was found and what was expected: for another shape, another type, a shape
            that the file or the memory cannot hold, or a number that is not finite.
    """
    kind = np.dtype(dtype)
    flags = kind.kind == "b"
    if entry.refused:
        raise InputError(f"{file}: {key}: {entry.refused}")
    if entry.dtype.kind not in "fiub":
        raise InputError(f"{file}: {key}: must be an array of numbers, found {entry.dtype}")
    check_shape(file, key, entry, shape)
    check_memory(file, key, 2 * math.prod(entry.shape) * max(entry.dtype.itemsize, kind.itemsize))
    stored = entry.load()
    if stored.dtype == bool:  # HDF5 returns any byte as a bool
        stored = stored.view(np.uint8)
    if len(shape) == 1:
        stored = stored.reshape(-1)
    with guard(file), np.errstate(over="ignore", invalid="ignore"):
        values = stored if flags else stored.astype(kind, copy=False)
    values = check_finite(file, key, values, used)
    if (flags or entry.dtype.kind == "b") and ((values != 0) & (values != 1)).any():
        raise InputError(f"{file}: {key}: must be true or false, 1 or 0, found other values")
    if notes is not None and kind == np.float32 and (told := told_of_float32(stored, values, used)):
        notes.setdefault(key, f"{key}: {told}")
    return values.astype(kind, copy=False)


def check_shape(file: str | Path, key: str, entry: Entry, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless an entry has the required shape (see `read_array`) and the file can hold it."""
    if entry.refused:
        raise InputError(f"{file}: {key}: {entry.refused}")
    found = entry.shape[:1] if len(shape) == 1 and entry.shape[1:] == (1,) else entry.shape
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        expected = f"({wanted},) or ({wanted}, 1)" if len(shape) == 1 else f"({wanted})"
        raise InputError(f"{file}: {key}: must have shape {expected}, found {entry.shape}")
    check_claim(file, key, entry)


def check_claim(file: str | Path, key: str, entry: Entry) -> None:
    """Raise InputError for an array that claims more bytes than those of it in the file can expand to."""
    claimed = math.prod(entry.shape) * entry.dtype.itemsize
    there = min(entry.stored, Path(file).stat().st_size)
    if claimed > max(entry.expansion * there, SMALL):
        raise InputError(
            f"{file}: {key}: claims shape {entry.shape}, {claimed:,} bytes; "
            f"found {there:,} bytes, which cannot hold so many"
        )


def check_finite(file: str | Path, key: str, values: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
    """The values (N, ...), with 0 in unused rows that are not finite.

    Raises:
        InputError: for NaN or infinity in a used row, naming the first such row.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    bad = np.flatnonzero(~finite if used is None else ~finite & used)
    if len(bad):
        raise InputError(f"{file}: {key}: must be finite, found {values[bad[0]]} in row {bad[0]}")
    values = values.copy()
    values[~finite] = 0
    return values


def told_of_float32(wide: np.ndarray, narrow: np.ndarray, used: np.ndarray | None = None) -> str:
    """What float32 loses of numbers (N,) or (N, width), in words; empty where it tells them apart.

    It is told of a column that is rounded by more than a hundredth of its standard deviation, and of one of numbers
    from 2^24 on of which most neighbours become equal.
    """
    if wide.dtype.itemsize < 4 or wide.dtype == np.float32 or not len(wide):
        return ""
    rows = np.ones(len(wide), bool) if used is None else used
    table, rounded = (array.reshape(len(array), -1) for array in (wide, narrow))
    lost, width = [], max(1, 2**20 // len(wide))
    for first in range(0, table.shape[1] if rows.any() else 0, width):
        exact, near = (array[rows, first : first + width].astype(np.float64) for array in (table, rounded))
        error, spread = np.abs(exact - near).max(0), exact.std(0)
        apart, merged = np.diff(exact, axis=0) != 0, np.diff(near, axis=0) == 0
        large = (np.abs(exact).max(0) >= 2**24) & (2 * (apart & merged).sum(0) > apart.sum(0))
        flat = (error > spread / 100) & (exact.max(0) > exact.min(0))
        lost += [(first + c, error[c], spread[c]) for c in np.flatnonzero(flat | large).tolist()]
    if not lost:
        return ""
    columns = "its numbers" if wide.ndim == 1 else f"column {', '.join(str(c) for c, _, _ in lost[:20])}"
    return (
        f"float32, in which it is kept, does not tell {columns} apart (rounded by up to {lost[0][1]:.3g}, "
        f"standard deviation {lost[0][2]:.3g}); subtract the first value before writing the file, or leave it out"
    )
