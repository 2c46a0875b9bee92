"""D4RL's maze2d data, made again: python -m envs.datasets make d4rl/maze2d-umaze-v1 FOLDER/maze2d-umaze-v1.hdf5

A controller follows the shortest way to a random cell, and when it is there, or the time of an episode is over, to
another one; the ball goes on from where it is. The task's rewards, for its own goal, are computed afterwards. The file
has D4RL's layout. The same seed gives the same rows.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.datasets.d4rl_file import write_d4rl
from envs.maze2d import DECISIONS, MAZES, REWARDS, Maze2D, cells, rewards
from mpdiffuser.console import progress

ROWS = {"umaze": 1_000_000, "medium": 2_000_000, "large": 4_000_000}
NEAR = 0.1  # distance at which a waypoint is reached
GAIN = 10.0  # of the distance from the waypoint
MISS = 0.2  # waypoints on the way lie up to so far below the cells' coordinates
DIFFERENCES = (
    "of several shortest ways another one may be taken",
    "a goal in the ball's own cell is reached at once; a waypoint is reached whatever the velocity",
    "the row after a reached goal has the ball's true state; in D4RL it repeats the row before",
    "goals, ways and starts are drawn by another generator of random numbers",
)


def shortest_way(maze: str, start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the cells on a shortest way, without the start and with the end (breadth-first search)."""
    before: dict[tuple[int, int], tuple[int, int]] = {start: start}
    left = deque([start])
    while left and end not in before:
        i, j = left.popleft()
        for cell in ((i, j + 1), (i, j - 1), (i + 1, j), (i - 1, j)):
            if MAZES[maze][cell[0]][cell[1]] != "#" and cell not in before:
                before[cell] = (i, j)
                left.append(cell)
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[-2::-1] or [end]


class Waypoints:
    """The controller that makes the data: it goes to cell after cell on a shortest way."""

    def __init__(self, maze: str, random: np.random.Generator) -> None:
        self.maze, self.random = maze, random
        self.free = cells(maze)
        self.waypoints: list[np.ndarray] = []
        self.end, self.goal = np.zeros(2), np.zeros(2)

    def choose_goal(self, place: np.ndarray) -> None:
        """Choose a random cell and the way to it from a place (2,)."""
        end = self.free[self.random.integers(len(self.free))]
        start = (round(float(place[0])), round(float(place[1])))
        way = [np.array(cell, np.float64) for cell in shortest_way(self.maze, start, end)]
        self.waypoints = [*(cell - MISS * self.random.uniform(size=2) for cell in way[:-1]), way[-1]]
        self.end = way[-1]
        self.goal = self.end + self.random.uniform(-0.1, 0.1, 2)  # D4RL's; its controller goes to the cell itself

    def act(self, place: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the action (2,) in [-1, 1], and whether the goal is reached."""
        action = (GAIN * (self.waypoints[0] - place) - velocity).clip(-1, 1)
        if len(self.waypoints) > 1 and np.linalg.norm(self.waypoints[0] - place) < NEAR:
            self.waypoints.pop(0)
        return action, bool(np.linalg.norm(self.end - place) < NEAR)


@dataclass(frozen=True)
class Maze2DData:
    """The data of a task.

    Args:
        maze: of `MAZES`. reward: of `REWARDS`. rows: their number; None: D4RL's.
    """

    maze: str
    reward: str
    rows: int | None = None

    def write(self, path: Path, seed: int) -> None:
        """Write the file; another seed gives other rows.

        Raises:
            InputError: for a path that does not end in .hdf5, or cannot be written.
        """
        write_d4rl(path, self.arrays, seed, DIFFERENCES)

    def arrays(self, seed: int) -> dict[str, np.ndarray]:
        """Return the arrays of the file, each with N rows."""
        count = self.rows or ROWS[self.maze]
        random, env = np.random.default_rng(seed), Maze2D(maze=self.maze)
        env.reset(seed=int(random.integers(2**31)))
        controller = Waypoints(self.maze, random)
        controller.choose_goal(env.data.qpos)
        states, actions = np.empty((count, 4)), np.empty((count, 2))
        goals, timeouts = np.empty((count, 2)), np.zeros(count, bool)
        since = 0
        with progress(total=count, desc=f"maze2d-{self.maze}", unit="row", unit_scale=True) as bar:
            for row in range(count):
                place, velocity = env.data.qpos, env.data.qvel
                actions[row], reached = controller.act(place, velocity)
                states[row, :2], states[row, 2:], goals[row] = place, velocity, controller.goal
                over = reached or since >= DECISIONS[self.maze]
                env.move(actions[row])
                since += 1
                if over:
                    timeouts[row], since = True, 0
                    controller.choose_goal(env.data.qpos)
                if row % 10_000 == 9_999:
                    bar.update(10_000)
        env.close()
        return {
            "observations": states.astype(np.float32),
            "actions": actions.astype(np.float32),
            "rewards": rewards(states[:, :2].astype(np.float32), self.maze, self.reward).astype(np.float32),
            "terminals": np.zeros(count, bool),
            "timeouts": timeouts,
            "infos/goal": goals.astype(np.float32),
            "infos/qpos": states[:, :2].astype(np.float32),
            "infos/qvel": states[:, 2:].astype(np.float32),
        }


MAKERS = {
    f"d4rl/maze2d-{maze}{'-dense' if reward == 'dense' else ''}-v1": Maze2DData(maze, reward)
    for maze in MAZES
    for reward in REWARDS
}
