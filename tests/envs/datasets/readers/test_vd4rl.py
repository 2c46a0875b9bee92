"""V-D4RL's two layouts, written as they are published, and broken ones."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets.readers.vd4rl import read_vd4rl
from mpdiffuser.errors import InputError


def episode(steps: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """What happened: o_0, a_0, r_0, o_1, ..."""
    random = np.random.default_rng(seed)
    return {
        "frames": random.integers(0, 256, (steps + 1, size, size, 3), np.uint8),
        "actions": random.uniform(-1, 1, (steps, 6)).astype(np.float32),
        "rewards": random.uniform(size=steps).astype(np.float32),
    }


def led_to(values: np.ndarray) -> np.ndarray:
    """A row for each observation, with what led to it; zeros lead to the first."""
    return np.concatenate([np.zeros((1, *values.shape[1:]), values.dtype), values])


def write_npz(file: Path, one: dict[str, np.ndarray], terminal: bool = False, **replaced: np.ndarray | None) -> None:
    rows = len(one["frames"])
    numbers = np.arange(rows)
    arrays = {
        "image": one["frames"],
        "action": led_to(one["actions"]),
        "reward": led_to(one["rewards"]),
        "discount": np.ones(rows, np.float32),
        "is_first": numbers == 0,
        "is_last": numbers == rows - 1,
        "is_terminal": (numbers == rows - 1) & terminal,
        **replaced,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **{key: array for key, array in arrays.items() if array is not None})  # type: ignore[arg-type]


def write_hdf5(file: Path, parts: list[dict[str, np.ndarray]], finished: bool = True, terminal: bool = False) -> None:
    kinds = [np.array([0] + [1] * (len(part["rewards"]) - 1) + [2])[: len(part["frames"])] for part in parts]
    kinds[-1][-1] = 2 if finished else 1
    steps = np.concatenate(kinds)
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as data:
        data["observation"] = np.concatenate([part["frames"] for part in parts]).transpose(0, 3, 1, 2)
        data["action"] = np.concatenate([led_to(part["actions"]) for part in parts])
        data["reward"] = np.concatenate([led_to(part["rewards"]) for part in parts])
        data["discount"] = np.where((steps == 2) & terminal, 0.0, 1.0).astype(np.float32)
        data["step_type"] = steps


def assert_holds(episodes, parts: list[dict[str, np.ndarray]], terminated: bool = False) -> None:
    assert episodes.lengths.tolist() == [len(part["rewards"]) for part in parts]
    for e, part in enumerate(parts):
        mine = {key: array[episodes.rows(e)] for key, array in episodes.arrays.items()}
        assert np.array_equal(mine["frames"], part["frames"]) and mine["frames"].dtype == np.uint8
        for key in ("actions", "rewards"):
            assert np.array_equal(mine[key][:-1], part[key]) and not mine[key][-1].any()
        ends = [False] * (len(part["rewards"]) - 1) + [True, False]
        assert mine["terminations"].tolist() == [end and terminated for end in ends]
        assert mine["truncations"].tolist() == [end and not terminated for end in ends]


@pytest.mark.parametrize("terminal", [False, True])
def test_64px(tmp_path: Path, capsys, terminal: bool) -> None:
    folder = tmp_path / "vd4rl_data/main/walker_walk/medium/64px"
    parts = [episode(7, 64, seed) for seed in range(3)]
    for number, part in enumerate(parts):
        write_npz(folder / f"2022-{number}-8.npz", part, terminal)
    episodes = read_vd4rl(folder)
    assert_holds(episodes, parts, terminal)
    assert episodes.info["left_out"].keys() == {"discount"} and not episodes.info["missing"]
    facts = {"source": "V-D4RL", "action_repeat": 2, "task": "walker_walk", "quality": "medium"}
    assert {key: episodes.info[key] for key in facts} == facts
    (note,) = episodes.info["notes"]
    assert note.startswith("environment=task task=walker_walk task.action_repeat=2 ")
    assert capsys.readouterr().out == "V-D4RL: 3 files, 3 episodes, 21 steps, 64x64 px\n"
    assert_holds(read_vd4rl(folder / "2022-1-8.npz"), parts[1:2], terminal)


@pytest.mark.parametrize("terminal", [False, True])
def test_84px(tmp_path: Path, terminal: bool) -> None:
    folder = tmp_path / "84px"
    parts = [episode(5, 84, seed) for seed in range(4)]
    write_hdf5(folder / "a.hdf5", parts[:3], terminal=terminal)
    write_hdf5(folder / "b.hdf5", parts[3:], terminal=terminal)
    assert_holds(read_vd4rl(folder), parts, terminal)


def test_an_unfinished_last_episode(tmp_path: Path) -> None:
    parts = [episode(5, 8, 0), episode(2, 8, 1)]
    write_hdf5(tmp_path / "a.hdf5", parts, finished=False)
    assert_holds(read_vd4rl(tmp_path), parts)
    alone = {"frames": parts[0]["frames"][:1], "actions": parts[0]["actions"][:0], "rewards": parts[0]["rewards"][:0]}
    write_hdf5(tmp_path / "a.hdf5", [*parts, alone])
    with h5py.File(tmp_path / "a.hdf5", "a") as data:
        data["step_type"][-1] = 0
    assert_holds(read_vd4rl(tmp_path), parts)


def test_more_flags_than_pictures(tmp_path: Path, capsys) -> None:
    one = episode(500, 4, 0)
    write_npz(tmp_path / "bad-501.npz", one, image=one["frames"][:500])
    with pytest.raises(InputError, match=r"no episode to read; .*found 1, of which skipped 1"):
        read_vd4rl(tmp_path)
    write_npz(tmp_path / "good-501.npz", one)
    assert_holds(read_vd4rl(tmp_path), [one])
    said = capsys.readouterr().out
    assert "bad-501.npz: image: found (500,) pictures, expected as many as there are rewards, (501,)" in said


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("image", np.zeros((4, 3, 8, 8), np.uint8), r"must have shape \(4, any, any, 3\), found \(4, 3, 8, 8\)"),
        ("image", np.zeros((4, 8, 8, 3)), "must be an array of uint8, found float64"),
        ("action", None, "no such key; expected image, action, reward, is_terminal; found"),
        ("action", np.zeros((5, 6)), r"must have shape \(4, any\), found \(5, 6\)"),
        ("reward", np.array([0, 1, np.nan, 1]), "must be finite, found nan in row 2"),
        ("action", np.full((4, 6), np.inf), r"must be finite, found \[inf.*\] in row 1"),
        ("is_terminal", None, "no such key"),
        ("is_terminal", np.zeros(3), r"must have shape \(4,\) or \(4, 1\), found \(3,\)"),
    ],
)
def test_broken(tmp_path: Path, key: str, values: np.ndarray | None, words: str) -> None:
    write_npz(tmp_path / "one.npz", episode(3, 8, 0), **{key: values})
    with pytest.raises(InputError, match=rf"one.npz: {key}: {words}"):
        read_vd4rl(tmp_path)


def test_truncated_and_unlike_and_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected \*.npz or \*.hdf5 of V-D4RL, found 0"):
        read_vd4rl(tmp_path)
    write_npz(tmp_path / "a.npz", episode(3, 8, 0))
    write_npz(tmp_path / "b.npz", episode(3, 16, 0))
    with pytest.raises(InputError, match=r"b.npz: image: must be of \(8, 8\) pixels as others are, found \(16, 16\)"):
        read_vd4rl(tmp_path)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:900])
    with pytest.raises(InputError, match=r"b.npz: damaged or truncated"):
        read_vd4rl(tmp_path)
