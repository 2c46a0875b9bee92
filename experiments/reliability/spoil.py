"""Random damage to a file or folder: to bytes, to structure, or to whole files."""

import copy
import json
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

STRANGE: list[Any] = [-1, 0, 1, 7, 10**6, 10**12, 10**400, 1.5, 1e308, "", "x" * 200, "../..", "/etc/passwd", "os"]
STRANGE += [None, True, [], {}, [[]], {"a": 1}, [10**12], ["os", "system"], float("nan"), float("inf")]
TYPES = ("f2", "f8", "i1", "u1", "i8", "u8", "c16", "?", "S3", "U3", "M8[s]", "f4,i4", ">f4", "V3")
HUGE = 10**12
NPZ = ("remove", "rename", "pickle", "terabytes", "path", "order", "twice", "compression", "header", "longer")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def spoil(folder: Path, chance: random.Random) -> str:
    """Damage one thing in a folder; returns a description of the damage."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = chance.choice(files)
    how = chance.choice(["bytes", "bytes", "structure", "structure", "structure", "file"])
    if how == "structure":
        file = chance.choice([file for file in files if file.suffix in STRUCTURES] or files)
    does = {"bytes": _bytes, "structure": STRUCTURES.get(file.suffix, _bytes), "file": _file}[how]
    return f"{file.relative_to(folder)}: {does(file, chance)}"


def _bytes(file: Path, chance: random.Random) -> str:
    data = bytearray(file.read_bytes())
    place = chance.randrange(min(len(data), chance.choice([16, 200, 4000, len(data)]))) if data else 0
    kind = chance.choice(["flip", "cut", "double", "zero", "insert"])
    if kind == "flip" and data:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "double":
        data += bytes(data)
    elif kind == "zero":
        data[place : place + 8] = bytes(chance.choice([0, 255]) for _ in range(8))
    else:
        data[place:place] = chance.randbytes(chance.randint(1, 40))
    file.write_bytes(data)
    return f"{kind} at {place}"


def _file(file: Path, chance: random.Random) -> str:
    kind = chance.choice(["remove", "empty", "link", "folder", "pickle", "program", "swap", "deep"])
    if kind == "program":
        (file.parent / "pipeline.py").write_text("raise SystemExit('executed')")
    elif kind == "pickle":
        file.with_name("diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    elif kind == "swap":
        other = chance.choice(sorted(path for path in file.parent.iterdir() if path.is_file()))
        shutil.copy(other, file) if other != file else file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "deep":
        file.write_text("[" * 100_000)
    else:
        file.unlink()
    if kind == "link":
        file.symlink_to("/etc/passwd")
    if kind == "folder":
        file.mkdir()
    return kind


def _tree(data: Any, chance: random.Random) -> str | None:
    """Change one entry of nested lists and dictionaries; None if there is none."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in items:
            places.append((value, key))
            walk(part)

    walk(data)
    if not places:
        return None
    holder, key = chance.choice(places)
    value = copy.deepcopy(chance.choice(STRANGE))
    if chance.random() < 0.2:
        del holder[key]
        return f"{key} removed"
    if isinstance(holder, dict) and chance.random() < 0.2:
        holder[str(value)[:50]] = holder.pop(key)
        return f"{key} called {str(value)[:50]}"
    if isinstance(holder, dict) and chance.random() < 0.1:
        holder["stranger"] = value
        return f"stranger beside {key}: {str(value)[:60]}"
    holder[key] = value
    return f"{key} becomes {str(value)[:60]}"


def _json(file: Path, chance: random.Random) -> str:
    try:
        data = json.loads(file.read_text())
    except ValueError:
        return _bytes(file, chance)
    what = _tree(data, chance)
    if what is None:
        return _bytes(file, chance)
    file.write_text(json.dumps(data))
    return what


def _yaml(file: Path, chance: random.Random) -> str:
    data = yaml.safe_load(file.read_text())
    what = _tree(data, chance)
    if what is None:
        return _bytes(file, chance)
    package = "# @package _global_\n" if file.read_text().startswith("# @package _global_") else ""
    file.write_text(package + yaml.safe_dump(data))
    return what


def _array(array: np.ndarray, chance: random.Random) -> tuple[np.ndarray, str]:
    """A damaged copy of an array, and the damage."""
    kind = chance.choice(["type", "shape", "value", "rows"])
    if kind == "type":
        dtype = chance.choice(TYPES)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return array.astype(dtype), f"as {dtype}"
            except (TypeError, ValueError):
                return np.zeros(array.shape, dtype), f"zeros as {dtype}"
    if kind == "shape":
        shapes = [(-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1], (*array.shape, 0), (0,), ()]
        shape = chance.choice(shapes)
        return np.resize(array, array.size if shape == (-1,) else shape), f"of shape {shape}"
    if kind == "rows" and array.ndim:
        count = chance.choice([0, 1, len(array) - 1, len(array) + 1])
        return np.resize(array, (max(count, 0), *array.shape[1:])), f"of {count} rows"
    new = np.array(array)
    value = chance.choice([np.nan, np.inf, -np.inf, 1e300, -1, 0, 1, 2, 200, 10**6])
    if new.dtype.kind not in "fiub" or not new.size:
        return np.asarray(value), f"the number {value}"
    new = new.astype("f8") if new.dtype.kind == "f" and chance.random() < 0.3 else new
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new.reshape(-1)[chance.randrange(new.size)] = np.asarray(value).astype(new.dtype)
    return new, f"{value} in it"


def _npy(file: Path, chance: random.Random) -> str:
    try:
        array, what = _array(np.load(file), chance)
    except (ValueError, EOFError):
        return _bytes(file, chance)
    np.save(file, array)
    return what


def _npz(file: Path, chance: random.Random) -> str:
    with np.load(file) as data:
        key = chance.choice(sorted(data))
    kind = chance.choice([*("array",) * 3, *NPZ])
    return f"{key}: {kind}, {spoil_npz(file, key, kind, chance)}"


def spoil_npz(file: Path, key: str, kind: str, chance: random.Random) -> str:
    """Damage an array of an npz file in one of the ways NPZ, or replace it by a damaged copy ("array")."""
    with np.load(file) as data:
        arrays = dict(data)
    said = ""
    if kind == "array":
        arrays[key], said = _array(arrays[key], chance)
    elif kind in ("remove", "rename", "path"):
        name = {"remove": "", "rename": "stranger", "path": chance.choice(["../../x", "/etc/passwd", "a/b"])}[kind]
        arrays |= {name: arrays[key]} if name else {}
        del arrays[key]
    elif kind == "pickle":
        arrays[key] = np.full(arrays[key].shape, Bomb(file.parent / "executed"), object)
    elif kind == "order":
        arrays[key] = np.asfortranarray(arrays[key])
    ways = (
        (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) if kind == "compression" else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
    with zipfile.ZipFile(file, "w", chance.choice(ways)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a name that occurs twice
        for name, array in [*arrays.items(), *([(key, arrays[key])] if kind == "twice" else [])]:
            with archive.open(f"{name}.npy", "w") as member:
                if name == key and kind == "terabytes":
                    header = {"descr": "<f4", "fortran_order": False, "shape": (HUGE, *array.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                elif name == key and kind == "header":
                    member.write(b"\x93NUMPY\x01\x00" + chance.randbytes(2) + b"__import__('os').getpid()" * 9)
                else:
                    np.lib.format.write_array(member, array)
                if name == key and kind == "longer":
                    member.write(b"more")
    return said


def _hdf5(file: Path, chance: random.Random) -> str:
    elsewhere = file.with_name("elsewhere.h5")
    shutil.copy(file, elsewhere)  # the target of links
    with h5py.File(file, "a") as data:
        names: list[str] = []
        data.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        key, other = chance.choice(names), chance.choice(names)
        kind = chance.choice([*("array",) * 4, *HDF5])
        if kind == "array" and data[key].dtype.kind in "fiub":
            array, said = _array(data[key][()], chance)
            del data[key]
            try:
                data[key] = array
            except TypeError:  # no such type in HDF5
                data[key], said = array.astype("S"), "as texts"
            return f"{key}: {said}"
        kind = kind if kind != "array" else "remove"
        try:
            HDF5[kind](data, key, other, elsewhere)
        except (TypeError, ValueError):  # impossible for this type or shape; the dataset is removed by now
            kind += ", impossible"
        return f"{key}: {kind}"


def _remade(**options: Any) -> Callable[[h5py.File, str, str, Path], None]:
    """Replaces a dataset by an empty one with these options."""

    def make(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
        shape, dtype = data[key].shape, data[key].dtype
        del data[key]
        data.create_dataset(key, **({"shape": shape, "dtype": dtype} | options))

    return make


def _linked(link: Callable[[str, str, Path], Any]) -> Callable[[h5py.File, str, str, Path], None]:
    def make(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
        del data[key]
        data[key] = link(key, other, elsewhere)

    return make


def _virtual(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    shape, dtype = data[key].shape, data[key].dtype
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(elsewhere, key, shape)
    del data[key]
    data.create_virtual_dataset(key, layout)


def _external(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    shape, dtype = data[key].shape, data[key].dtype
    size = max(data[key].size * dtype.itemsize, 1)
    del data[key]
    data.create_dataset(key, shape, dtype, external=[("/etc/passwd", 0, size)])


def _huge(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    shape, dtype = data[key].shape, data[key].dtype
    del data[key]
    made = data.create_dataset(key, (HUGE, *shape[1:]), dtype, chunks=(4, *shape[1:]), compression="gzip")
    if dtype.kind in "fiub":
        made[:4] = np.zeros((), dtype)


def _group(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    del data[key]
    data.create_group(key)["within"] = 1.0


def _remove(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    del data[key]


def _rename(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    data.move(key, f"{key}_of_old")


def _attributes(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    for place in (data, data[key], data[key].parent):
        place.attrs["total_steps"], place.attrs["id"] = "many", h5py.Empty("f4")


def _loop(data: h5py.File, key: str, other: str, elsewhere: Path) -> None:
    data[key].parent["loop"] = data["/"]


HDF5: dict[str, Callable[[h5py.File, str, str, Path], None]] = {
    "remove": _remove,
    "rename": _rename,
    "group": _group,
    "attributes": _attributes,
    "loop": _loop,
    "virtual": _virtual,
    "external storage": _external,
    "soft link": _linked(lambda key, other, elsewhere: h5py.SoftLink(f"/{other}")),
    "external link": _linked(lambda key, other, elsewhere: h5py.ExternalLink(str(elsewhere), key)),
    "never written": _remade(),
    "terabytes": _remade(shape=(HUGE, 3), dtype="f4", chunks=True),
    "terabytes begun": _huge,
    "a chunk of terabytes": _remade(shape=(HUGE // 1000, 3), dtype="f4", chunks=(10**8, 3), compression="gzip"),
    "nothing": lambda data, key, other, elsewhere: _remade(data=h5py.Empty("f4"), shape=None)(
        data, key, other, elsewhere
    ),
    "texts": _remade(dtype=h5py.string_dtype()),
    "references": _remade(dtype=h5py.ref_dtype),
    "lists": _remade(dtype=h5py.vlen_dtype(np.float32)),
    "records": _remade(dtype=np.dtype([("a", "f4"), ("b", "i8")])),
    "names": _remade(dtype=h5py.enum_dtype({"red": 1, "blue": 2}, "i4")),
}


def _parquet(file: Path, chance: random.Random) -> str:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    number = chance.randrange(table.num_columns)
    key, column = table.column_names[number], table.column(number).combine_chunks()
    values = column.to_pylist()
    kind = chance.choice(["remove", "rename", "rows", "shuffle", "type", "nulls", "value", "lists", "deep", "twice",
                          "codec"])  # fmt: skip
    new: Any = None
    if kind == "remove":
        table = table.remove_column(number)
    elif kind == "rename":
        table = table.rename_columns([f"{name}_of_old" if name == key else name for name in table.column_names])
    elif kind == "rows":
        rows = chance.choice([0, 1, table.num_rows - 1])
        table = table.slice(0, rows)
    elif kind == "shuffle":
        table = table.take(chance.sample(range(table.num_rows), table.num_rows))
    elif kind == "type":
        new = pyarrow.array(chance.choice([[str(v) for v in values], [True] * len(values), [b"x"] * len(values)]))
    elif kind == "nulls":
        new = pyarrow.array([None, *values[1:]], column.type)
    elif kind == "value":
        value = chance.choice([-1, 10**6, 10**18, np.nan, np.inf, 1e300, 2**63 - 1])
        place = chance.randrange(len(values))
        values[place] = [value] * len(values[place]) if isinstance(values[place], list) else value
        try:
            new = pyarrow.array(values)
        except pyarrow.ArrowException:
            new = pyarrow.array([float(value)] * len(values))
    elif kind == "lists":
        new = pyarrow.array([[1.0] * chance.choice([0, 1, 2, 3]) for _ in values])
    elif kind == "deep":
        new = pyarrow.array([[[{"a": 1}]]] * len(values))
    elif kind == "twice":
        table = table.append_column(key, column)
    if new is not None:
        table = table.set_column(number, key, new)
    codec = chance.choice(["zstd", "gzip", "brotli", "none"]) if kind == "codec" else "snappy"
    pyarrow.parquet.write_table(table, file, compression=codec)
    return f"{key}: {kind} {codec}"


STRUCTURES: dict[str, Callable[[Path, random.Random], str]] = {
    ".json": _json,
    ".yaml": _yaml,
    ".npy": _npy,
    ".npz": _npz,
    ".hdf5": _hdf5,
    ".parquet": _parquet,
}
