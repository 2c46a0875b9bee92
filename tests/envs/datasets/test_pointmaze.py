"""OGBench's pointmaze data: ways against the package's oracle, the rows, and the file as a task."""

import hashlib
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from envs.datasets.__main__ import main
from envs.datasets.opening import open_dataset
from envs.datasets.pointmaze import KINDS, MAKERS, MAZES, NOISE, Maze, PointMazeData
from envs.datasets.tasks import made_again
from envs.ogbench import make_ogbench

# SHA-256 of two episodes with seed 0; another version of mujoco may move the point otherwise
MUJOCO = "3.17.0"
CHECKSUMS = {
    ("medium", "navigate"): "df5234608f6ce5dfff8447cf474ffae2f6d1e0d231c36e8522c539b00eab1c60",
    ("medium", "stitch"): "64ea34226781f2520f2b8dc6f18e293a7a1ca4ab58494b18d1597608c45e46eb",
    ("large", "navigate"): "82435480dac7a8e7ac926438ab8e735ea482b0b7b4f4ba167f4f3d4a98a1abcc",
    ("large", "stitch"): "77842daa7123a71e24a76a33f04a77e72ba7518c452752cf1e824d6371c3c7c8",
    ("giant", "navigate"): "72430abbaa5170a2465f5063f8e0e0b5074c3eccfc8f06ebc6a2a4143745de04",
    ("giant", "stitch"): "e9673f4fe914aa479cc66c141ed694031b07714822950487202f777f6f5c4c24",
    ("teleport", "navigate"): "9d4f4b8c73339a3e1fff7aa0d3218d7dc98daccb2b7b13e1006d4004619c7ea1",
    ("teleport", "stitch"): "2c8b56560074fd045f68f4235ecbfe17ddb5fd727152a2c915cde288f3891a20",
}


def world(maze: str) -> Any:
    """The package's environment."""
    return make_ogbench(f"pointmaze-{maze}-v0").env


def arrays(maze: str, kind: str, count: int = 2) -> dict[str, np.ndarray]:
    return PointMazeData(maze, kind, count).arrays(world(maze), 0, range(count))


@pytest.mark.parametrize("name", MAZES)
def test_ways_are_the_packages(name: str) -> None:
    inner = world(name).unwrapped
    maze = Maze(inner.maze_map)
    for goal in maze.free[::3]:
        for cell in maze.free:
            subgoal, left = inner.get_oracle_subgoal(inner.ij_to_xy(cell), inner.ij_to_xy(goal))
            assert inner.ij_to_xy(maze.next(cell, goal)) == tuple(subgoal)
            assert maze.distances[goal].get(cell, -1) == left[cell]


def test_corners_are_no_corridors() -> None:
    maze = Maze(np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]))
    assert maze.corners() == [(1, 1), (1, 3), (3, 3)] and maze.away((1, 1), 4) == [(3, 3)]
    assert maze.next((0, 0), (1, 1)) == (0, 0)  # within a wall


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind: str) -> None:
    found = arrays("medium", kind, 4)
    rows = KINDS[kind][1]
    places, actions = found["observations"].reshape(4, rows, 2), found["actions"].reshape(4, rows, 2)
    assert np.abs(actions).max() == 1 and found["terminals"].sum() == 4 and found["terminals"][rows - 1 :: rows].all()
    free = np.linalg.norm(places[:, 1:] - places[:, :-1] - 0.2 * actions[:, :-1], axis=-1) < 1e-3
    assert 0.6 < free.mean() < 1  # walls stop the others
    inside = np.abs(actions) < 1
    assert 0.2 < actions[inside].std() < NOISE + 0.2
    crossed = [len({(round(x / 4), round(y / 4)) for x, y in episode}) for episode in places]
    assert np.median(crossed) >= (12 if kind == "navigate" else 4)


@pytest.mark.skipif(mujoco.__version__ != MUJOCO, reason="the checksums are of another version of mujoco")
@pytest.mark.parametrize(("maze", "kind"), CHECKSUMS)
def test_the_same_seed_gives_the_same_rows(maze: str, kind: str) -> None:
    found = arrays(maze, kind)
    both = found["observations"].tobytes() + found["actions"].tobytes()
    assert hashlib.sha256(both).hexdigest() == CHECKSUMS[maze, kind]


def test_the_files_are_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    name, file = "ogbench/pointmaze-medium-stitch-v0", tmp_path / "data" / "pointmaze-medium-stitch-v0.npz"
    monkeypatch.setitem(MAKERS, name, PointMazeData("medium", "stitch", 2))
    monkeypatch.setattr("envs.datasets.making.MAKERS", MAKERS)
    assert main(["make", name, str(file)]) == 0
    other = tmp_path / "again.npz"
    assert main(["make", name, str(other)]) == 0
    for ending in ("", "-val"):
        one, two = (each.with_name(f"{each.stem}{ending}.npz") for each in (file, other))
        assert {**np.load(one)}.keys() == {**np.load(two)}.keys()
        np.testing.assert_array_equal(np.load(one)["observations"], np.load(two)["observations"])
    assert (
        len(np.load(file)["actions"]) == 2 * 201
        and len(np.load(file.with_name(f"{file.stem}-val.npz"))["actions"]) == 201
    )
    for found in (open_dataset(name, file.parent), open_dataset(file)):
        assert found.info["stand_in"] and found.info["asks_for_goals"] and len(found) == 2
        assert found.info["environment"] == {"kind": "ogbench", "env_id": "pointmaze-medium-v0"}
    damaged = bytearray(file.read_bytes())
    damaged[damaged.rindex(b"PK\x01\x02") + 6] = 99  # the version that is needed
    other.write_bytes(damaged)
    assert not made_again(other)
    capsys.readouterr()
    assert main(["make", name, str(tmp_path / "folder")]) == 2 and "must end in .npz" in capsys.readouterr().err
    file.unlink()
    assert main(["make", name, str(file)]) == 2 and "-val.npz: exists already" in capsys.readouterr().err
