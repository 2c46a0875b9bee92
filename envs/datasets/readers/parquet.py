"""Columns of parquet tables as arrays, checked before they are read. For LeRobotDataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import EXPANSION, SMALL, require, told_of_float32, visible
from envs.datasets.readers.guard import guard
from mpdiffuser.errors import InputError
from mpdiffuser.memory import check_memory

FLAGS = ("next.done",)
BATCH = 32  # rows of pictures read at once


def table_files(folder: Path, part: str) -> list[Path]:
    """The *.parquet files of folder/part and of the folders in it, linked ones too, in the order of their names."""
    inside = [
        file for chunk in visible((folder / part).glob("*")) if chunk.is_dir() for file in chunk.glob("*.parquet")
    ]
    files = [*(folder / part).glob("*.parquet"), *inside]
    found = sorted(file for file in files if file in set(visible(files)))
    if not found:
        raise InputError(f"{folder / part}: no *.parquet in it; expected chunk-000/*.parquet")
    return found


def read_tables(
    files: list[Path], columns: list[str], notes: dict[str, str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of all tables, concatenated, and the first row of each file.

    Args:
        columns: those ending in _index are whole numbers, int64; timestamps are float64, flags bool, others float32.
        notes: see `arrays.read_array`.

    Returns:
        column -> (n,) or (n, width), and (files,) int64.
    """
    tables = [_table(file, columns, notes) for file in files]
    shapes = [{key: values.shape[1:] for key, values in table.items()} for table in tables]
    for file, shape in zip(files, shapes):
        key = next((key for key in columns if shape[key] != shapes[0][key]), None)
        if key:
            raise InputError(f"{file}: {key}: must have rows of shape {shapes[0][key]}, found {shape[key]}")
    rows = [len(table[columns[0]]) for table in tables]
    return {key: np.concatenate([table[key] for table in tables]) for key in columns}, np.cumsum([0, *rows[:-1]])


def column_names(files: list[Path]) -> list[str]:
    """The names of the first table's columns."""
    with guard(files[0]), _parquet().ParquetFile(files[0]) as data:
        return list(data.schema_arrow.names)


def read_pictures(files: list[Path], key: str) -> Iterator[tuple[Path, bytes]]:
    """File and bytes of each picture of a column of structs {bytes, path}, row by row."""
    import pyarrow

    for file in files:
        with guard(file), _parquet().ParquetFile(file) as data:
            require(file, dict.fromkeys(data.schema_arrow.names), (key,))
            _check_claim(file, data)
            kind = data.schema_arrow.field(key).type
            if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                raise InputError(f"{file}: {key}: must be structs with the field bytes, found {kind}")
            for batch in data.iter_batches(BATCH, columns=[f"{key}.bytes"], use_threads=False):
                for picture in batch.column(0).field(0).to_pylist():
                    if not isinstance(picture, bytes):
                        raise InputError(f"{file}: {key}: a row without bytes; store the pictures in the table")
                    yield file, picture


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"LeRobotDataset needs pyarrow ({error}): pip install 'mpdiffuser[lerobot]'") from error
    return pyarrow.parquet


def _check_claim(file: Path, data: Any) -> None:
    groups = [data.metadata.row_group(number) for number in range(data.metadata.num_row_groups)]
    values = [group.column(number).num_values for group in groups for number in range(group.num_columns)]
    if 8 * max(sum(values), data.metadata.num_rows) > max(EXPANSION * file.stat().st_size, SMALL):
        raise InputError(f"{file}: claims {data.metadata.num_rows:,} rows, found {file.stat().st_size:,} bytes")


def _table(file: Path, columns: list[str], notes: dict[str, str]) -> dict[str, np.ndarray]:
    with guard(file), _parquet().ParquetFile(file) as data:
        require(file, dict.fromkeys(data.schema_arrow.names), tuple(columns))
        _check_claim(file, data)
        groups = [data.metadata.row_group(number) for number in range(data.metadata.num_row_groups)]
        values = [
            group.column(number).num_values
            for group in groups
            for number in range(group.num_columns)
            if group.column(number).path_in_schema.split(".list.")[0] in columns
        ]
        check_memory(file, "table", 3 * 8 * sum(values))
        table = data.read(columns=columns, use_threads=False)
        return {key: _column(file, key, table.column(key).combine_chunks(), notes) for key in columns}


def _column(file: Path, key: str, column: Any, notes: dict[str, str]) -> np.ndarray:
    """A column of numbers, (n,), or of equally long lists of numbers, (n, width)."""
    import pyarrow

    rows, index, flags = len(column), key.endswith("_index"), key in FLAGS
    nested = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
    flat = column.flatten() if nested else column
    numbers, whole = pyarrow.types.is_floating(flat.type), pyarrow.types.is_integer(flat.type)
    right = pyarrow.types.is_boolean(flat.type) if flags else whole or (numbers and not index)
    if not right or flat.null_count:
        wanted = "true or false" if flags else "whole numbers" if index else "numbers or lists of numbers"
        raise InputError(f"{file}: {key}: must be {wanted}, found {column.type} with {flat.null_count} nulls")
    if nested and rows:
        lengths = np.unique(column.value_lengths().fill_null(0))
        if len(lengths) != 1:
            raise InputError(f"{file}: {key}: must have lists of one length, found {lengths.tolist()}")
    wide = flat.to_numpy(zero_copy_only=False)
    single = key.endswith("timestamp") or key == "next.reward" or flags
    kind = bool if flags else np.int64 if index else np.float64 if key.endswith("timestamp") else np.float32
    with np.errstate(over="ignore"):
        values = wide.astype(kind)
    shape = (rows, len(values) // max(rows, 1)) if nested and not single else (len(values),)
    if len(values) != rows and len(shape) == 1:
        raise InputError(f"{file}: {key}: must have one number a row, found {len(values)} in {rows} rows")
    wide, values = wide.reshape(shape), values.reshape(shape)
    if kind == np.float32:
        finite = np.isfinite(values).reshape(rows, -1).all(1) if rows else np.zeros(0, bool)
        if told := told_of_float32(wide, values, finite):
            notes.setdefault(key, f"{key}: {told}")
    return values
