"""Files that are whole but cannot be read: each reason is told, and what to do."""

import errno
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets.readers import arrays, guard
from envs.datasets.readers.flat import read_flat
from experiments.reliability import layouts
from mpdiffuser import memory
from mpdiffuser.errors import InputError

HOLDS = "import sys, h5py; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    layouts.flat_hdf5(tmp_path)
    return tmp_path / "some.hdf5"


def compressed(file: Path, code: int) -> None:
    """Give `actions` a filter that is not there, and chunks that claim to have gone through it."""
    with h5py.File(file, "a") as data:
        shape = data["actions"].shape
        del data["actions"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((6, 2))
        created.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5d.create(data.id, b"actions", h5py.h5t.IEEE_F32LE, space, created)
        for row in (0, 6):
            made.write_direct_chunk((row, 0), b"some bytes", 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (32001, r"compressed with Blosc, filter 32001, .*; pip install hdf5plugin"),
        (512, r"compressed with filter 512, .*; install its HDF5 plugin"),
    ],
)
def test_filters_of_plugins(hdf5: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    compressed(hdf5, code)
    with pytest.raises(InputError, match=rf"some.hdf5: actions: {words}"):
        read_flat(hdf5)


def test_a_file_that_another_program_writes(hdf5: Path) -> None:
    whole = read_flat(hdf5).checksum()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(hdf5)], stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout and writer.stdout.readline() == "open\n"
        with pytest.raises(InputError, match=r"some.hdf5: locked .*another program has it open for writing; wait"):
            read_flat(hdf5)
        writer.communicate("")
    assert read_flat(hdf5).checksum() == whole


def test_a_writer_that_was_killed(tmp_path: Path) -> None:
    file, copy = tmp_path / "live.hdf5", tmp_path / "left.hdf5"
    with h5py.File(file, "w", libver="latest") as data:
        data["actions"] = np.zeros((3, 1))
        data.swmr_mode = True
        data.flush()
        copy.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"left.hdf5: marked as open for writing .* run h5clear -s \S*left.hdf5"):
        read_flat(copy)


def test_arrays_larger_than_the_memory(hdf5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(hdf5, "a") as data:
        rows = 10**6
        for key in list(data):
            if isinstance(data[key], h5py.Dataset):
                shape, dtype = (rows, *data[key].shape[1:]), data[key].dtype
                del data[key]
                data.create_dataset(key, data=np.zeros(shape, dtype), compression="gzip")
    monkeypatch.setattr(memory, "_of_machine", lambda: 15e6)
    with pytest.raises(InputError, match=r"some.hdf5: \w+: needs 0.024 GB of memory, 0.015 GB are free; close other"):
        read_flat(hdf5)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("no room"), r"does not fit into the memory \(MemoryError: no room\)"),
        (OSError("memory allocation failed for chunk"), "does not fit into the memory"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read .*see whether its disk is there"),
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (OSError("filter returned failure during read"), "damaged or truncated"),
        (ValueError("bad header"), r"damaged or truncated \(ValueError: bad header\); get it again"),
    ],
)
def test_reasons(error: Exception, words: str) -> None:
    with pytest.raises(InputError, match=f"some.file: {words}"), guard.guard("some.file"):
        raise error


def test_decompression_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "available_memory", lambda: 1e6)
    with pytest.raises(InputError, match="does not fit into the memory"), guard.guard("some.file"):
        raise OSError("Can't synchronously read data (filter returned failure during read)")


def test_free_memory_is_known() -> None:
    assert 2**20 < memory.available_memory() < 2**50


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        (np.random.default_rng(0).normal(size=(50, 3)), None),
        (np.arange(150.0).reshape(50, 3) * 1e7, None),
        (np.full((50, 3), 0.1), None),  # rounded, but constant
        (np.random.default_rng(0).normal(size=(50, 3)) * 1e-9 + [0.0, 5.0, 0.0], "column 1"),
        (1_700_000_000_000 + np.arange(50)[:, None] * np.array([20, 0, 10**9]), "column 0"),
        (np.arange(50.0) * 0.01 + 3e8, "its numbers"),
    ],
)
def test_what_float32_loses(values: np.ndarray, columns: str | None) -> None:
    told = arrays.told_of_float32(values, values.astype(np.float32))
    assert (f"does not tell {columns} apart" in told) if columns else told == ""
    assert arrays.told_of_float32(values.astype(np.float32), values.astype(np.float32)) == ""


def test_rows_that_are_not_used_are_not_told_of() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2))
    values[3] = 1e12
    used = np.arange(9) != 3
    assert arrays.told_of_float32(values, values.astype(np.float32), used) == ""
