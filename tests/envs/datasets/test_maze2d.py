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
    "umaze": "8f72fb19679151917ace88707922486d4301ca9b7d6e9988d31be76c269349f0",
    "medium": "7f1f14ac3170e10560065c57623fdab5e84fe100fbfb48d1f909f6d516e6ba1c",
    "large": "0c68e05fa5788705122d0b57c6ceb295c0c3b325368699c9569cf11093a5d339",
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
    controller.waypoints, controller.end = [np.array([1.0, 2.0]), np.array([1.0, 3.0])], np.array([1.0, 3.0])
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
    near = np.linalg.norm(seen[ends, :2] - arrays["infos/goal"][ends].round(), axis=1) < 0.1
    assert 0.05 < np.abs(arrays["infos/goal"] - arrays["infos/goal"].round()).max() <= 0.1
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
    file.rename(file.with_name("maze2d-umaze-sparse-v1.hdf5"))  # the public name
    public = open_dataset(tmp_path / "data" / "maze2d-umaze-sparse-v1.hdf5")
    assert public.info["stand_in"] and open_dataset(name, tmp_path / "data").info["stand_in"]
    file.with_name("maze2d-umaze-sparse-v1.hdf5").rename(file)
    assert episodes.info["stand_in"] and episodes["observations"].shape[1] == 4
    capsys.readouterr()
    assert main(["make", name, str(tmp_path / "folder")]) == 2
    assert "must end in .hdf5" in capsys.readouterr().err
    assert main(["make", name, str(file)]) == 2 and "exists already" in capsys.readouterr().err
