"""maze2d's data: the controller, the rows, and the file as a task."""

import hashlib
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.datasets.__main__ import main
from envs.datasets.maze2d import MAKERS, Maze2DData, Waypoints, shortest_way
from envs.datasets.opening import open_dataset
from envs.maze2d import DECISIONS, MAZES, cells, goal

# SHA-256 of 3,000 rows with seed 0, observations and actions; another version of mujoco may move the ball otherwise
MUJOCO = "3.17.0"
CHECKSUMS = {
    "umaze": "d00e4db9775183f2717ca85e19bc630cd249ef23d0e9baa25bdf9a81b92c19fe",
    "medium": "b3f5489aee5e8ca9318b2aaa9de3a4fa00574a69395962c03f60c2e0d09110b0",
    "large": "2c382600696ccbfafd4c97a336a31a59e200e9012c053d5ca76c472fcabe695c",
}


def checksum(maze: str) -> str:
    arrays = Maze2DData(maze, "sparse", 3000).arrays(0)
    return hashlib.sha256(arrays["observations"].tobytes() + arrays["actions"].tobytes()).hexdigest()


def distances(maze: str, end: tuple[int, int]) -> dict[tuple[int, int], float]:
    """Steps from each free cell to a cell, by relaxing all pairs of neighbours until nothing changes."""
    free = cells(maze)
    found = {cell: 0.0 if cell == end else np.inf for cell in free}
    for _ in free:
        for i, j in free:
            near = [found[c] for c in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if c in found]
            found[i, j] = min(found[i, j], 1 + min(near))
    return found


@pytest.mark.parametrize("maze", MAZES)
def test_ways_are_shortest(maze: str) -> None:
    for end in cells(maze)[::3]:
        steps = distances(maze, end)
        for start in cells(maze):
            way = shortest_way(maze, start, end)
            assert way[-1] == end and len(way) == max(1, steps[start])
            for (i, j), (k, m) in zip([start, *way], way):
                assert abs(i - k) + abs(j - m) == (1 if start != end else 0) and MAZES[maze][k][m] != "#"


def test_the_controller_acts_as_d4rls() -> None:
    controller = Waypoints("umaze", np.random.default_rng(0))
    controller.waypoints, controller.goal = [np.array([1.0, 2.0]), np.array([1.0, 3.0])], np.array([1.0, 3.0])
    action, reached = controller.act(np.array([1.01, 1.97]), np.array([0.05, -0.4]))
    np.testing.assert_allclose(action, [-0.1 - 0.05, 0.3 + 0.4])
    assert not reached and len(controller.waypoints) == 1  # it was near the first
    action, reached = controller.act(np.array([1.0, 2.92]), np.zeros(2))
    assert reached and len(controller.waypoints) == 1
    np.testing.assert_allclose(controller.act(np.array([1.0, 2.0]), np.zeros(2))[0], [0, 1])


@pytest.mark.parametrize("maze", MAZES)
def test_rows(maze: str) -> None:
    arrays = Maze2DData(maze, "sparse", 4000).arrays(1)
    seen, ends = arrays["observations"], np.flatnonzero(arrays["timeouts"])
    assert np.diff(ends).max() <= DECISIONS[maze] + 1 and not arrays["terminals"].any()
    near = np.linalg.norm(seen[ends, :2] - arrays["infos/goal"][ends], axis=1) < 0.1
    assert near.mean() > 0.9  # the others ran out of time
    np.testing.assert_array_equal(arrays["rewards"], np.linalg.norm(seen[:, :2] - goal(maze), axis=1) <= 0.5)
    np.testing.assert_allclose(seen[1:, :2] - seen[:-1, :2], 0.01 * seen[1:, 2:], atol=2e-3)  # it never jumps
    assert np.abs(arrays["actions"]).max() <= 1 and len({tuple(row) for row in arrays["infos/goal"]}) > 3


@pytest.mark.skipif(mujoco.__version__ != MUJOCO, reason="the checksums are of another version of mujoco")
@pytest.mark.parametrize("maze", MAZES)
def test_the_same_seed_gives_the_same_rows(maze: str) -> None:
    assert checksum(maze) == CHECKSUMS[maze]


def test_the_file_is_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    name, file = "d4rl/maze2d-umaze-v1", tmp_path / "data" / "maze2d-umaze-v1.hdf5"
    monkeypatch.setitem(MAKERS, name, Maze2DData("umaze", "sparse", 2000))
    monkeypatch.setattr("envs.datasets.making.MAKERS", MAKERS)
    assert main(["make", name, str(file)]) == 0
    other = tmp_path / "again.hdf5"
    assert main(["make", name, str(other)]) == 0 and other.read_bytes() == file.read_bytes()
    episodes = open_dataset(name, tmp_path / "data")
    assert episodes.info["environment"] == {"kind": "maze2d", "maze": "umaze", "reward": "sparse"}
    assert episodes.info["stand_in"] and episodes["observations"].shape[1] == 4
    capsys.readouterr()
    assert main(["make", name, str(tmp_path / "folder")]) == 2
    assert "must end in .hdf5" in capsys.readouterr().err
    assert main(["make", name, str(file)]) == 2 and "exists already" in capsys.readouterr().err
