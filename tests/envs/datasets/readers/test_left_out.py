"""What no reader reads is listed, rows that no step uses may hold anything, and marks of episodes are believed."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets import open_dataset
from envs.datasets.readers.flat import read_flat
from envs.datasets.readers.vd4rl import read_vd4rl
from experiments.reliability import layouts
from mpdiffuser.errors import InputError


def ogbench(rows: int = 10, pictures: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    seen = random.integers(0, 256, (rows, 8, 8, 3), np.uint8) if pictures else random.normal(size=(rows, 4))
    return {
        "observations": seen,
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "terminals": np.arange(rows) % 5 == 4,
        "qpos": random.normal(size=(rows, 6)),
        "button_states": np.zeros((rows, 2), np.int64),
    }


@pytest.mark.parametrize("pictures", [False, True])
def test_ogbench(tmp_path: Path, pictures: bool) -> None:
    """Five rows an episode, of which the last holds an observation alone."""
    file, arrays = tmp_path / "cube-single-play-v0.npz", ogbench(pictures=pictures)
    np.savez(file, **arrays)  # type: ignore[arg-type]
    episodes = open_dataset(file)
    assert episodes.lengths.tolist() == [4, 4] and not episodes["terminations"].any()
    assert np.flatnonzero(episodes["truncations"]).tolist() == [3, 8] and not episodes["rewards"].any()
    seen = arrays["observations"] if pictures else arrays["observations"].astype(np.float32)
    assert np.array_equal(episodes["frames" if pictures else "observations"], seen)
    assert episodes.info["missing"] == ["rewards", "timeouts", "next_observations"]
    assert episodes.info["left_out"].keys() == {"qpos", "button_states"}
    assert "as in OGBench" in " ".join(episodes.info["notes"])


def test_gymnasium_names_without_truncations_are_not_ogbench(tmp_path: Path) -> None:
    arrays = ogbench()
    arrays["terminations"] = arrays.pop("terminals")
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="truncations: no such key; expected"):
        read_flat(tmp_path / "own.npz")


def test_rewards_are_missing_in_files_with_timeouts_too(
    tmp_path: Path, write: Callable[..., Path], transitions: Callable[..., dict[str, np.ndarray]]
) -> None:
    episodes = read_flat(write(tmp_path / "own.hdf5", rewards=None))
    assert "rewards" in episodes.info["missing"] and not episodes["rewards"].any()
    assert episodes["terminations"].sum() == 1
    np.savez(tmp_path / "other.npz", **transitions())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"own.hdf5: rewards: no such key; expected, as other files of"):
        open_dataset(tmp_path)
    (tmp_path / "own.hdf5").rename(tmp_path / "hopper_medium-v2.hdf5")
    with pytest.raises(InputError, match=r"rewards: no such key; expected of d4rl/hopper-medium-v2"):
        open_dataset(tmp_path / "hopper_medium-v2.hdf5")


def test_fillers_of_flat_files(tmp_path: Path, transitions: Callable[..., dict[str, np.ndarray]]) -> None:
    """The last row of an episode that timed out has no action and no reward; those of one row have nothing."""
    arrays = transitions(13)
    arrays["timeouts"][11] = True  # so row 12 stands alone
    for key in ("actions", "rewards"):
        arrays[key][11] = np.nan
    for key in ("observations", "actions", "rewards"):
        arrays[key][12] = -np.inf
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    episodes = read_flat(tmp_path / "own.npz")
    assert episodes.lengths.tolist() == [5, 6] and episodes.returns.tolist() == [5, 6]
    assert episodes.info["notes"] == [
        "1 episodes of one row are left out, with their rewards: they have no step, as no next_observations are there"
    ]
    arrays["next_observations"] = np.full((13, 3), np.nan)
    arrays["next_observations"][[4, 11, 12]] = 7
    arrays["observations"][12] = arrays["actions"][11:] = arrays["rewards"][11:] = 1
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    assert read_flat(tmp_path / "own.npz").lengths.tolist() == [5, 7, 1]


def test_two_names_of_a_mark(tmp_path: Path, write: Callable[..., Path]) -> None:
    same = read_flat(write(tmp_path / "same.hdf5", terminations=np.arange(12) == 4))
    assert same.checksum() == read_flat(write(tmp_path / "one.hdf5")).checksum()
    with pytest.raises(InputError, match="terminations: must mark the same rows as terminals"):
        read_flat(write(tmp_path / "odd.hdf5", terminations=np.arange(12) == 5))


def test_rows_in_another_order_are_told_of(tmp_path: Path, transitions: Callable[..., dict[str, np.ndarray]]) -> None:
    arrays = transitions(40)
    arrays["terminals"][4] = False
    arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    np.savez(tmp_path / "sorted.npz", **arrays)  # type: ignore[arg-type]
    assert "notes" not in read_flat(tmp_path / "sorted.npz").info
    mixed = np.random.default_rng(0).permutation(40)
    for key in ("observations", "next_observations", "actions"):
        arrays[key] = arrays[key][mixed]
    np.savez(tmp_path / "mixed.npz", **arrays)  # type: ignore[arg-type]
    assert "are the rows in the order of time?" in read_flat(tmp_path / "mixed.npz").info["notes"][0]


def test_unreadable_arrays_that_nobody_needs(tmp_path: Path, write: Callable[..., Path]) -> None:
    file = write(tmp_path / "own.hdf5")
    with h5py.File(file, "a") as data:
        data["note"], data["away"] = "by hand", h5py.ExternalLink("other.h5", "x")
        data["infos/qvel"] = np.zeros((12, 2))
    left_out = read_flat(file).info["left_out"]
    assert left_out.keys() == {"note", "away", "infos"} and "a link to other.h5:x" in left_out["away"]
    arrays = ogbench() | {"names": np.array([{}], object)}
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    assert read_flat(tmp_path / "own.npz").info["left_out"].keys() == {"names", "qpos", "button_states"}


def test_next_observations_without_next_frames(tmp_path: Path) -> None:
    layouts.flat_npz(tmp_path)
    with np.load(tmp_path / "walk.npz") as data:
        np.savez(tmp_path / "walk.npz", **{key: data[key] for key in data if key != "next_frames"})
    info = read_flat(tmp_path / "walk.npz").info
    assert info["left_out"].keys() == {"next_observations"} and info["missing"] == ["next_observations"]


def test_a_folder_with_other_things_in_it(tmp_path: Path, transitions: Callable[..., dict[str, np.ndarray]]) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", **transitions(), speed=np.zeros(12))  # type: ignore[arg-type]
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "._a.npz").write_bytes(b"Mac OS X")
    (tmp_path / "more").mkdir()
    (tmp_path / "readme.txt").write_text("walks")
    (tmp_path / "c.h5").symlink_to(tmp_path / "elsewhere/c.hdf5")
    (tmp_path / "elsewhere").mkdir()
    with h5py.File(tmp_path / "elsewhere/c.hdf5", "w") as data:
        for key, array in transitions(6).items():
            data[key] = array
    episodes = open_dataset(tmp_path)
    assert len(episodes) == 6 - 1  # the one of c.h5 after its termination has a row alone
    assert episodes.info["left_out"].keys() == {"speed", "more", "elsewhere", "readme.txt"}


def pixels(rows: int = 9, **marks: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "action": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "reward": np.ones(rows, np.float32),
        "is_terminal": np.zeros(rows, bool),
    } | marks


def at(*rows: int) -> np.ndarray:
    return np.isin(np.arange(9), rows)


@pytest.mark.parametrize(
    ("marks", "lengths"),
    [
        ({}, [8]),
        ({"is_first": at(0, 4)}, [3, 4]),
        ({"is_last": at(3, 8)}, [3, 4]),
        ({"is_first": at(0, 4), "is_last": at(8)}, [3, 4]),
        ({"is_first": at(0, 4, 5), "is_last": at(3, 8), "is_terminal": at(8)}, [3, 3]),
    ],
)
def test_marks_of_vd4rl_are_believed(tmp_path: Path, marks: dict[str, np.ndarray], lengths: list[int]) -> None:
    np.savez(tmp_path / "some.npz", **pixels(**marks))  # type: ignore[arg-type]
    episodes = read_vd4rl(tmp_path)
    assert episodes.lengths.tolist() == lengths and episodes.returns.tolist() == lengths
    assert episodes["terminations"].any() == ("is_terminal" in marks)
    assert "first rows of episodes are not used" in episodes.info["notes"][-1]


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"is_terminal": at(5)}, "is_terminal in row 5, but row 6 does not begin an episode"),
        ({"is_first": at(0, 5), "is_last": at(3, 8)}, "is_last in row 3, but row 4 does not begin"),
        ({"is_terminal": np.full(9, 2)}, "is_terminal: must be true or false"),
    ],
)
def test_marks_of_vd4rl_that_contradict(tmp_path: Path, marks: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "some.npz", **pixels(**marks))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"some.npz: {words}"):
        read_vd4rl(tmp_path)


def test_step_types_of_vd4rl(tmp_path: Path) -> None:
    layouts.vd4rl_hdf5(tmp_path)
    file = tmp_path / "shard.hdf5"
    with h5py.File(file, "a") as data:
        for key in ("action", "reward"):
            data[key][4] = np.nan  # the second episode's first row
        data["discount"][[0, 4]] = np.nan
        data["step_type"][0] = 1
    episodes = open_dataset(tmp_path)
    assert episodes.lengths.tolist() == [3, 5] and "begins within an episode" in episodes.info["notes"][-2]
    with h5py.File(file, "a") as data:
        data["step_type"][4] = 1
    with pytest.raises(InputError, match=r"step_type: 2 \(last\) in row 3, but row 4 does not begin an episode"):
        open_dataset(tmp_path)


def test_both_layouts_of_vd4rl_in_a_folder(tmp_path: Path) -> None:
    layouts.vd4rl_hdf5(tmp_path)
    layouts.vd4rl_npz(tmp_path)
    (tmp_path / "._0-4.npz").write_bytes(b"Mac OS X")
    info = open_dataset(tmp_path).info
    assert info["left_out"].keys() == {"shard.hdf5", "discount"} and info["missing"] == []
