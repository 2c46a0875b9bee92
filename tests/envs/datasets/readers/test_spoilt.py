"""Spoilt datasets that could pass for good ones: what loads is what was written, what is missing is missed."""

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from envs.datasets import open_dataset
from envs.datasets.readers.flat import read_flat
from envs.datasets.readers.lerobot import read_lerobot
from envs.datasets.readers.minari import read_minari
from experiments.reliability import layouts
from mpdiffuser.errors import InputError

pytestmark = pytest.mark.slow  # a drill

KEY, NAME = "observations", "observations.npy"


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    layouts.flat_hdf5(tmp_path)
    return next(tmp_path.glob("*.hdf5"))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    layouts.flat_npz(tmp_path)
    return next(tmp_path.glob("*.npz"))


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


def rewrite(file: Path, changed: list[tuple[str, bytes]], how: int = zipfile.ZIP_DEFLATED) -> None:
    """The archive anew, with these members in place of those of their names."""
    kept = [(name, data) for name, data in members(file).items() if name not in dict(changed)]
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in [*kept, *changed]:
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("changed", "how", "words"),
    [
        ([(NAME, header((12, 3)) + bytes(10**8))], zipfile.ZIP_DEFLATED, r"holds more than its shape \(12, 3\) says"),
        ([(NAME, header((12, 3)) + bytes(100))], zipfile.ZIP_DEFLATED, r"damaged or truncated \(ValueError"),
        ([(NAME, npy(np.ones((12, 3))))] * 2, zipfile.ZIP_DEFLATED, r"must be a .npy as numpy writes it"),
        ([(KEY, npy(np.ones((12, 3))))], zipfile.ZIP_DEFLATED, r"must be a .npy as numpy writes it"),
        ([(NAME, npy(np.ones((12, 3))))], zipfile.ZIP_LZMA, r"must be a .npy as numpy writes it, stored or deflated"),
        ([(NAME, b"\x93NUMPY\x01\x00\x08\x00((((((((")], zipfile.ZIP_STORED, r"damaged or truncated"),
    ],
)
def test_npz(npz: Path, changed: list[tuple[str, bytes]], how: int, words: str) -> None:
    rewrite(npz, changed, how)
    with pytest.raises(InputError, match=rf"walk.npz: .*{words}"):
        open_dataset(npz)


def test_another_layout_on_the_disk_changes_nothing(hdf5: Path) -> None:
    whole = read_flat(hdf5).checksum()
    with h5py.File(hdf5, "a") as data:
        array = data[KEY][()]
        del data[KEY]
        data.create_dataset(KEY, data=array.astype(">f4"), chunks=(5, 2), compression="gzip", shuffle=True)
        data.attrs["note"], data[KEY].attrs["unit"], data["more/of/it"] = h5py.Empty("f4"), "m", np.zeros(3)
    assert read_flat(hdf5).checksum() == whole


def test_an_array_that_was_written_in_part(hdf5: Path) -> None:
    """HDF5 would make zeros of the rest."""
    with h5py.File(hdf5, "a") as data:
        array = data[KEY][()]
        del data[KEY]
        data.create_dataset(KEY, array.shape, array.dtype, chunks=(4, 3))[:4] = array[:4]
    with pytest.raises(InputError, match=r"some.hdf5: observations: must have 3 chunks, found 1"):
        read_flat(hdf5)


def test_an_npz_that_loads_is_the_one_that_was_written(npz: Path) -> None:
    """The format has checksums: of 400 changed bytes none goes unnoticed, or else it was of no use."""
    whole, data, random = open_dataset(npz).checksum(), npz.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.integers(len(data), size=400):
        npz.write_bytes(data[:place] + bytes([data[place] ^ (1 << int(random.integers(8)))]) + data[place + 1 :])
        try:
            assert open_dataset(npz).checksum() == whole
        except InputError:
            refused += 1
    assert refused > 200


def test_an_episode_that_minari_lost(tmp_path: Path) -> None:
    layouts.minari(tmp_path)
    with h5py.File(tmp_path / "data/main_data.hdf5", "a") as data:
        del data["episode_1"]
    with pytest.raises(InputError, match=r"must have episode_0, episode_1, ... 2 in number .*found 1"):
        read_minari(tmp_path)
    for name in ("../../etc", "/etc/x", "a/../b"):
        with pytest.raises(InputError, match=r"not in .*expected an id"):
            read_minari(name)


def test_lerobot_that_lost_or_has_too_much(tmp_path: Path) -> None:
    layouts.lerobot(tmp_path)
    table = tmp_path / "data/chunk-000/file-000.parquet"
    rows = pyarrow.parquet.read_table(table)
    pyarrow.parquet.write_table(rows.slice(0, 4), table)
    with pytest.raises(InputError, match=r"must hold total_episodes 2 as meta/info.json says, found 1"):
        read_lerobot(tmp_path)
    twice = pyarrow.concat_tables([rows.slice(0, 4), rows.slice(4, 6), rows.slice(0, 4)])
    pyarrow.parquet.write_table(twice, table)
    with pytest.raises(InputError, match=r"an episode occurs twice"):
        read_lerobot(tmp_path)
    huge = {name: pyarrow.array(np.zeros(2 * 10**7, kind)) for name, kind in (("action", float), ("frame_index", int))}
    huge |= {"observation.state": huge["action"], "next.reward": huge["action"], "episode_index": huge["frame_index"]}
    pyarrow.parquet.write_table(pyarrow.table(huge), table)
    with pytest.raises(InputError, match=r"claims 20,000,000 rows, found [\d,]+ bytes"):
        read_lerobot(tmp_path)


def test_a_file_that_may_not_be_read(hdf5: Path, monkeypatch) -> None:
    """To root, as tests may run, nothing is forbidden."""

    def refuse(file: Path) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("envs.datasets.readers.arrays.file_kind", refuse)
    with pytest.raises(InputError, match=r"some.hdf5: no permission to read it \(.*Permission denied"):
        read_flat(hdf5)
