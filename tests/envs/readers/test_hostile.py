"""Others' files that point elsewhere, hold programs, claim too much, or hold less than they say: refused. What changes
nothing changes nothing."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from envs.datasets import open_dataset
from envs.minari_io import import_minari
from envs.readers.flat import read_flat
from envs.readers.lerobot import read_lerobot
from experiments.reliability import layouts
from experiments.reliability.spoil import Bomb
from mpdiffuser.errors import InputError

KEY = "observations"


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    layouts.flat_hdf5(tmp_path)
    return next(tmp_path.glob("*.hdf5"))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    layouts.flat_npz(tmp_path)
    return next(tmp_path.glob("*.npz"))


def replace(file: Path, key: str, put: Callable[[h5py.File, np.ndarray], Any]) -> None:
    """Put something in the place of an array."""
    with h5py.File(file, "a") as data:
        array = data[key][()]
        del data[key]
        put(data, array)


def another(folder: Path) -> Path:
    """A file that holds other observations."""
    with h5py.File(folder / "other", "w") as data:
        data[KEY] = np.ones((12, 3), np.float32)
    return folder / "other"


def set_link(data: h5py.File, link: Any) -> None:
    data[KEY] = link


def external(data: h5py.File, array: np.ndarray, file: Path) -> None:
    file.write_bytes(bytes(array.nbytes))
    data.create_dataset(KEY, array.shape, array.dtype, external=[(str(file), 0, array.nbytes)])


def virtual(data: h5py.File, array: np.ndarray, file: Path) -> None:
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(another(file.parent), KEY, array.shape)
    data.create_virtual_dataset(KEY, layout)


def written_in_part(data: h5py.File, array: np.ndarray) -> None:
    data.create_dataset(KEY, array.shape, array.dtype, chunks=(4, 3))[:4] = array[:4]


HDF5: list[tuple[Callable[[h5py.File, np.ndarray, Path], Any], str]] = [
    (lambda d, a, f: set_link(d, h5py.ExternalLink(str(another(f.parent)), KEY)), r"a link to .*other:observations"),
    (lambda d, a, f: set_link(d, h5py.SoftLink("/next_observations")), r"a link to :/next_observations, which may"),
    (external, r"lies in other files \(.*elsewhere\)"),
    (virtual, r"lies in other files \(.*other\)"),
    (lambda d, a, f: d.create_dataset(KEY, (12, 10**12), "f4", chunks=True), r"claims shape \(12, 1000000000000\)"),
    (lambda d, a, f: d.create_dataset(KEY, (12, 3), "f4"), r"must have 144 bytes, found 0"),
    (lambda d, a, f: written_in_part(d, a), r"must have 3 chunks, found 1"),
    (lambda d, a, f: d.create_dataset(KEY, (12, 3), h5py.string_dtype()), r"must be an array of numbers, found object"),
    (lambda d, a, f: d.create_dataset(KEY, (12, 3), h5py.ref_dtype), r"must be an array of numbers, found object"),
    (lambda d, a, f: d.create_dataset(KEY, data=h5py.Empty("f4")), r"must have shape \(12, any\), found \(\)"),
    (lambda d, a, f: d.create_group(KEY), r"no such key"),
]


@pytest.mark.parametrize(("put", "words"), HDF5)
def test_hdf5(hdf5: Path, put: Callable[[h5py.File, np.ndarray, Path], Any], words: str) -> None:
    replace(hdf5, KEY, lambda data, array: put(data, array, hdf5.parent / "elsewhere"))
    with pytest.raises(InputError, match=rf"some.hdf5: .*{words}"):
        read_flat(hdf5)


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


NAME = f"{KEY}.npy"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("changed", "how", "words"),
    [
        (
            [(NAME, header((12, 10**12)))],
            zipfile.ZIP_DEFLATED,
            r"claims shape \(12, 1000000000000\), 48,000,000,000,000",
        ),
        ([(KEY, npy(np.ones((12, 3))))], zipfile.ZIP_DEFLATED, r"must be a .npy, there once"),
        ([(NAME, header((12, 3)) + bytes(10**8))], zipfile.ZIP_DEFLATED, r"holds more than its shape \(12, 3\) says"),
        ([(NAME, header((12, 3)) + bytes(100))], zipfile.ZIP_DEFLATED, r"damaged or truncated \(ValueError"),
        ([(NAME, npy(np.ones((12, 3))))] * 2, zipfile.ZIP_DEFLATED, r"must be a .npy, there once"),
        ([(NAME, npy(np.ones((12, 3))))], zipfile.ZIP_LZMA, r"must be a .npy, there once, stored or deflated"),
        ([(NAME, b"\x93NUMPY\x01\x00\x08\x00((((((((")], zipfile.ZIP_STORED, r"damaged or truncated"),
        ([("../../x.npy", npy(np.ones(3))), (NAME, b"")], zipfile.ZIP_STORED, r"damaged or truncated"),
    ],
)
def test_npz(npz: Path, changed: list[tuple[str, bytes]], how: int, words: str) -> None:
    rewrite(npz, changed, how)
    with pytest.raises(InputError, match=rf"walk.npz: .*{words}"):
        open_dataset(npz)


def test_a_pickle_in_an_npz(npz: Path) -> None:
    rewrite(npz, [(NAME, npy(np.array([Bomb(npz.parent / "executed")] * 12, object)))])
    with pytest.raises(InputError, match=r"observations: must be an array of numbers, found object"):
        open_dataset(npz)
    assert not (npz.parent / "executed").exists()


def test_what_changes_nothing(hdf5: Path, tmp_path: Path) -> None:
    """Another layout on the disk, attributes, further arrays."""
    whole = read_flat(hdf5).checksum()

    def big(data: h5py.File, array: np.ndarray) -> None:
        data.create_dataset(KEY, data=array.astype(">f4"), chunks=(5, 2), compression="gzip", shuffle=True)
        data.attrs["note"], data[KEY].attrs["unit"], data["more/of/it"] = h5py.Empty("f4"), "m", np.zeros(3)

    replace(hdf5, KEY, big)
    assert read_flat(hdf5).checksum() == whole


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


def test_minari_names_an_environment_that_nobody_makes(tmp_path: Path) -> None:
    """Without spaces, Minari itself would import the module that env_spec names."""
    layouts.minari(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    file = tmp_path / "data/metadata.json"
    about = json.loads(file.read_text())
    del about["observation_space"], about["action_space"]
    about["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": f"{tmp_path}/evil:Evil"})
    file.write_text(json.dumps(about | {"jpeg_encoding": False}))
    with pytest.raises(InputError):
        import_minari(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_minari_that_lost_or_loops(tmp_path: Path) -> None:
    layouts.minari(tmp_path)
    whole = (tmp_path / "data/main_data.hdf5").read_bytes()
    with h5py.File(tmp_path / "data/main_data.hdf5", "a") as data:
        del data["episode_1"]
    with pytest.raises(InputError, match=r"must have episode_0, episode_1, ... 2 in number .*found 1"):
        import_minari(tmp_path)
    (tmp_path / "data/main_data.hdf5").write_bytes(whole)
    with h5py.File(tmp_path / "data/main_data.hdf5", "a") as data:
        data["episode_1/observations/loop"] = data["episode_1"]
    with pytest.raises(InputError, match=r"loop.*: a group that holds itself"):
        import_minari(tmp_path)
    for name in ("../../etc", "/etc/x", "a/../b"):
        with pytest.raises(InputError, match=r"not in .*expected an id"):
            import_minari(name)


def test_lerobot(tmp_path: Path) -> None:
    layouts.lerobot(tmp_path)
    info, table = tmp_path / "meta/info.json", tmp_path / "data/chunk-000/file-000.parquet"
    film = tmp_path / f"videos/{layouts.FILM}/chunk-000/file-000.mp4"
    about, rows = json.loads(info.read_text()), pyarrow.parquet.read_table(table)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'other.mp4'}\n#EXT-X-ENDLIST\n"
    (tmp_path / "other.mp4").write_bytes(film.read_bytes())
    film.write_text(playlist)
    with pytest.raises(InputError, match=r"file-000.mp4: damaged or truncated"):
        read_lerobot(tmp_path, layouts.FILM)
    away = about["features"] | {"../../x": about["features"][layouts.FILM]}
    info.write_text(json.dumps(about | {"features": away}))
    with pytest.raises(InputError, match=r"frames=../../x: no such film"):
        read_lerobot(tmp_path, "../../x")
    away[layouts.FILM]["shape"] = [10**6, 10**6, 3]
    info.write_text(json.dumps(about | {"features": away}))
    with pytest.raises(InputError, match=r"shape: must be of a picture, found \[1000000"):
        read_lerobot(tmp_path, layouts.FILM)
    info.write_text(json.dumps(about | {"fps": "fast"}))
    with pytest.raises(InputError, match=r"fps: must be a positive number, found 'fast'"):
        read_lerobot(tmp_path)
    info.write_text(json.dumps(about))
    pyarrow.parquet.write_table(rows.slice(0, 4), table)
    with pytest.raises(InputError, match=r"must hold total_episodes 2 as meta/info.json says, found 1"):
        read_lerobot(tmp_path)
    pyarrow.parquet.write_table(pyarrow.concat_tables([rows.slice(0, 4), rows.slice(0, 4)]), table)
    with pytest.raises(InputError, match=r"an episode is there twice|must count each episode"):
        read_lerobot(tmp_path)
    shared = {name: pyarrow.array(np.zeros(2 * 10**7)) for name in ("action", "observation.state")}
    shared |= {name: pyarrow.array(np.zeros(2 * 10**7, int)) for name in ("episode_index", "frame_index")}
    pyarrow.parquet.write_table(pyarrow.table(shared | {"next.reward": shared["action"]}), table)
    with pytest.raises(InputError, match=r"claims 20,000,000 rows, found [\d,]+ bytes"):
        read_lerobot(tmp_path)
