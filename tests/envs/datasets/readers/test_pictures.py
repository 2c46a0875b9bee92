"""Pictures in arrays of files, read in blocks: every layout gives what numpy and h5py give."""

import io
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets import open_dataset
from envs.datasets.readers import arrays
from envs.datasets.readers.arrays import open_arrays
from envs.datasets.readers.pictures import CHANNELS_FIRST, HEIGHT_FIRST, array_source
from mpdiffuser import episodes as episodes_module
from mpdiffuser import memory
from mpdiffuser.episodes import Episodes, EpisodesWriter
from mpdiffuser.errors import InputError

LAYOUTS = ("stored.npz", "deflated.npz", "fortran.npz", "plain.hdf5", "chunked.hdf5", "odd.hdf5")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 7 * 4 * 5 * 3)  # seven pictures


def write(folder: Path, layout: str, pictures: np.ndarray) -> Path:
    file = folder / layout
    if file.suffix == ".npz":
        save = np.savez_compressed if layout.startswith("deflated") else np.savez
        save(file, frames=np.asfortranarray(pictures) if layout.startswith("fortran") else pictures)
        return file
    options = {
        "plain": {},
        "chunked": {"chunks": (3, 4, 5, 3), "compression": "gzip"},
        "odd": {"chunks": (10, 2, 5, 1)},
    }
    with h5py.File(file, "w") as data:
        data.create_dataset("frames", data=pictures, **options[file.stem])  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks(tmp_path: Path, layout: str) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), np.uint8)
    file = write(tmp_path, layout, whole)
    with open_arrays(file) as entries:
        for first in range(23):
            blocks = list(entries["frames"].blocks(first))
            assert np.array_equal(np.concatenate(blocks), whole[first:])
            assert len(blocks) > 1 or len(whole) - first <= 10 or layout.startswith("fortran")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_pictures(tmp_path: Path, layout: str) -> None:
    """Pictures left out and repeated, from any of them on."""
    whole = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), np.uint8)
    numbers = np.array([0, 1, 1, 2, 6, 7, 7, 7, 13, 14, 20, 22])
    source = array_source(write(tmp_path, layout, whole), "frames", np.arange(12), numbers, HEIGHT_FIRST)
    for first in range(12):
        assert np.array_equal(np.concatenate(list(source.read(first))), whole[numbers[first:]])


def test_channels_first(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), np.uint8)
    source = array_source(write(tmp_path, "stored.npz", whole), "frames", np.arange(9), np.arange(9), CHANNELS_FIRST)
    assert np.array_equal(np.concatenate(list(source.read(0))), whole.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
@pytest.mark.parametrize("following", [False, True])
def test_cameras_of_a_flat_file(tmp_path: Path, suffix: str, following: bool) -> None:
    """Two cameras of other sizes, three episodes: terminated, truncated, of one step."""
    random = np.random.default_rng(0)
    rows, ends, terminals = 12, [4, 10, 11], [4]
    flags = {
        name: np.isin(np.arange(rows), where) for name, where in (("terminals", terminals), ("timeouts", ends[1:]))
    }
    cameras = {"top": (4, 6), "wrist": (8, 5)}
    data = {name: random.integers(0, 256, (rows, *size, 3), np.uint8) for name, size in cameras.items()}
    data |= {"actions": random.normal(size=(rows, 2)), "rewards": np.ones(rows), **flags}
    if following:
        data |= {f"next_{name}": random.integers(0, 256, (rows, *size, 3), np.uint8) for name, size in cameras.items()}
    file = tmp_path / f"some.{suffix}"
    if suffix == "npz":
        np.savez(file, **data)
    else:
        with h5py.File(file, "w") as stored:
            for name, values in data.items():
                stored[name] = values
    episodes = open_dataset(file)
    assert set(episodes.record.observations) == set(cameras) and not episodes.info["left_out"]
    for name in cameras:
        now, after = data[name], data.get(f"next_{name}")
        if after is not None:
            expected = [now[:5], after[4:5], now[5:11], after[10:11], now[11:12], after[11:12]]
        else:  # the last row of an episode that did not terminate is its final observation
            expected = [now[:5], now[4:5], now[5:11]]
        assert np.array_equal(episodes[name], np.concatenate(expected))


def test_names_of_cameras(tmp_path: Path) -> None:
    """Every name of a camera becomes the name of a file."""
    long = "camera" * 20
    names = {
        "cam-top": "cam_top",
        "caméra": "cam_ra",
        long: long[:64],
        "offsets": "offsets_camera3",
        "a b": "a_b_camera4",
        "a.b": "a_b_camera5",
    }
    random = np.random.default_rng(0)
    pictures = {key: random.integers(0, 256, (5, 2, 3, 3), np.uint8) for key in names}
    after = {f"next_{key}": random.integers(0, 256, (5, 2, 3, 3), np.uint8) for key in names}
    np.savez(tmp_path / "some.npz", actions=np.ones((5, 1)), truncations=np.arange(5) == 4, **pictures, **after)
    episodes = open_dataset(tmp_path / "some.npz")
    assert episodes.info["left_out"] == {}
    episodes.save(tmp_path / "copy")
    found = Episodes.load(tmp_path / "copy")
    assert found.record.names("picture") == sorted(names.values())
    for key, name in names.items():
        assert np.array_equal(found[name], np.concatenate([pictures[key], after[f"next_{key}"][-1:]]))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_arrays_that_may_be_meant_for_pictures(tmp_path: Path, dtype: type) -> None:
    shape = (5, 3, 8, 9) if dtype == np.uint8 else (5, 8, 9, 3)
    some = {"actions": np.ones((5, 1)), "truncations": np.arange(5) == 4, "top": np.zeros(shape, dtype)}
    told = rf"{np.dtype(dtype)} of shape {re.escape(str(shape))}; expected .*\(N, height, width, 3\) uint8"
    np.savez(tmp_path / "some.npz", **some)
    with pytest.raises(InputError, match=f"some.npz: top: found {told}"):
        open_dataset(tmp_path / "some.npz")
    np.savez(tmp_path / "more.npz", **some, observations=np.ones((5, 2)))
    assert re.fullmatch(told + ".*", open_dataset(tmp_path / "more.npz").info["left_out"]["top"])
    np.savez(tmp_path / "none.npz", **some | {"top": np.zeros((5, 0, 9, 3), np.uint8)})
    with pytest.raises(
        InputError, match=r"none.npz: top: pictures must have 1 to 16,384 pixels a side, found .*\(5, 0"
    ):
        open_dataset(tmp_path / "none.npz")


@pytest.mark.parametrize("layout", ["stored.npz", "fortran.npz", "odd.hdf5"])
def test_a_block_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2.0**20)
    file = write(tmp_path, layout, np.zeros((12, 512, 512, 3), np.uint8))
    with open_arrays(file) as entries, pytest.raises(InputError, match=r"frames: needs 0.0.* GB of memory"):
        list(entries["frames"].blocks(0))


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    some = {"actions": np.ones((5, 1)), "truncations": np.arange(5) == 4}
    np.savez(tmp_path / "some.npz", frames=np.zeros((5, 4, 4, 3), np.uint8), **some)
    episodes = open_dataset(tmp_path / "some.npz")
    np.savez(tmp_path / "some.npz", frames=np.zeros((5, 1, 4, 3), np.uint8), **some)
    with pytest.raises(InputError, match=r"pictures: found one of shape \(1, 4, 3\), expected \(4, 4, 3\)"):
        episodes.save(tmp_path / "copy")


@pytest.mark.parametrize("change", ["pictures", "cameras", "size"])
def test_a_killed_copy_begins_again_if_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(episodes_module, "KEEP_EVERY", 1)
    random = np.random.default_rng(0)
    file, ends = tmp_path / "arm.npz", {"truncations": np.arange(23) == 22}

    def write_arm(names: list[str], side: int) -> dict[str, np.ndarray]:
        pictures = {name: random.integers(0, 256, (23, side, 5, 3), np.uint8) for name in names}
        np.savez(file, actions=np.ones((23, 1)), **ends, **pictures)
        return pictures

    write_arm(["top", "wrist"], 4)
    keep = EpisodesWriter.keep
    points: list[int] = []

    def stop(writer: EpisodesWriter, progress: int) -> None:
        keep(writer, progress)
        points.append(progress)
        if len(points) == 5:  # in the second camera
            raise KeyboardInterrupt

    monkeypatch.setattr(EpisodesWriter, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(file).save(tmp_path / "copy")
    assert points[-1] > 23
    pictures = write_arm(["wrist"] if change == "cameras" else ["top", "wrist"], 6 if change == "size" else 4)
    open_dataset(file).save(tmp_path / "copy")
    found = Episodes.load(tmp_path / "copy")
    assert found.record.names("picture") == sorted(pictures)
    assert all(np.array_equal(found[name], array) for name, array in pictures.items())


@pytest.mark.parametrize(("claimed", "words"), [(90, "damaged or truncated"), (10, "holds more than its shape")])
def test_a_member_of_another_length(tmp_path: Path, claimed: int, words: str) -> None:
    """The header tells of another number of pictures than there are."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((30, 4, 5, 3), np.uint8))
    data = buffer.getvalue().replace(b"(30, 4, 5, 3)", f"({claimed}, 4, 5, 3)".encode())
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        archive.writestr("frames.npy", data)
    with open_arrays(tmp_path / "some.npz") as entries, pytest.raises(InputError, match=words):
        list(entries["frames"].blocks(0))
