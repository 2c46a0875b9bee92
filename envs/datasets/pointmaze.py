"""OGBench's pointmaze data, made again: python -m envs.datasets make ogbench/pointmaze-medium-navigate-v0 FILE.npz

A point goes from cell to cell on a shortest way to a goal, with noisy actions. With `navigate` it gets a new goal where
it has reached one, with `stitch` the only goal is four cells away. The file has OGBench's layout without `qvel`, and a
second one, FILE-val.npz, has a tenth as many episodes. The same seed gives the same rows. Needs OGBench's package.
"""

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.datasets.tasks import MADE_BY, made_by
from envs.ogbench import make_ogbench
from mpdiffuser.console import progress
from mpdiffuser.errors import InputError
from mpdiffuser.files import replacing, writing

MAZES = ("medium", "large", "giant", "teleport")
KINDS = {"navigate": (1000, 1001), "stitch": (5000, 201)}  # episodes, and rows of each
NOISE = 0.5  # standard deviation of the actions' noise
AWAY = 4  # cells from the start to the goal of stitch
SIDES = ((-1, 0), (0, -1), (1, 0), (0, 1))
DIFFERENCES = ("all that is random is drawn by other generators of random numbers",)

Cell = tuple[int, int]


class Maze:
    """Shortest ways between the free cells of a maze.

    Args:
        walls: (rows, columns), 0 where a cell is free.
    """

    def __init__(self, walls: np.ndarray) -> None:
        self.free: list[Cell] = [(int(i), int(j)) for i, j in np.argwhere(walls == 0)]
        self._all = set(self.free)
        self.distances = {cell: self._distances_to(cell) for cell in self.free}

    def beside(self, cell: Cell) -> list[Cell]:
        """Return the free cells beside a cell."""
        around = [(cell[0] + i, cell[1] + j) for i, j in SIDES]
        return [each for each in around if each in self._all]

    def corners(self) -> list[Cell]:
        """Return the free cells that are not a piece of a straight corridor: goals of navigate."""
        found = []
        for i, j in self.free:
            sides = {(a - i, b - j) for a, b in self.beside((i, j))}
            if sides not in ({(-1, 0), (1, 0)}, {(0, -1), (0, 1)}):
                found.append((i, j))
        return found

    def away(self, cell: Cell, steps: int) -> list[Cell]:
        """Return the cells to which a shortest way has so many steps."""
        return [other for other, distance in self.distances[cell].items() if distance == steps]

    def next(self, cell: Cell, goal: Cell) -> Cell:
        """Return the next cell on a shortest way to a goal; from the goal or from within a wall the cell itself."""
        left = self.distances[goal]
        return min([cell, *self.beside(cell)], key=left.__getitem__) if cell in left else cell

    def _distances_to(self, goal: Cell) -> dict[Cell, int]:
        found, waiting = {goal: 0}, deque([goal])
        while waiting:
            cell = waiting.popleft()
            for other in self.beside(cell):
                if other not in found:
                    found[other] = found[cell] + 1
                    waiting.append(other)
        return found


def validation_file(path: Path) -> Path:
    """Return the second file of OGBench's data, beside the first.

    Raises:
        InputError: for a path that does not end in .npz, or if the second file exists.
    """
    if path.suffix != ".npz":
        raise InputError(f"{path}: must end in .npz, since it is a file in OGBench's layout")
    second = path.with_name(f"{path.stem}-val.npz")
    if second.exists():
        raise InputError(f"{second}: exists already; choose another name or remove it")
    return second


def write_files(made: Iterable[tuple[Path, Mapping[str, np.ndarray]]], about: str) -> None:
    """Write files and their arrays; all files appear at the end. about: of `made_by`."""
    with contextlib.ExitStack() as together:
        for file, arrays in made:
            handle = together.enter_context(replacing(file))
            np.savez_compressed(handle, allow_pickle=False, **arrays, **{MADE_BY: np.array(about)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class PointMazeData:
    """The data of a task.

    Args:
        maze: of `MAZES`. kind: of `KINDS`. episodes: their number; None: OGBench's.
    """

    maze: str
    kind: str
    episodes: int | None = None

    def write(self, path: Path, seed: int) -> None:
        """Write both files; another seed gives other rows.

        Raises:
            InputError: for a path that does not end in .npz, exists, or cannot be written, or without the package.
        """
        second = validation_file(path)
        env = make_ogbench(f"pointmaze-{self.maze}-v0").env
        count = self.episodes or KINDS[self.kind][0]
        about = made_by(seed, DIFFERENCES)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()  # before the work
            parts = ((second, range(count, count + max(1, count // 10))), (path, range(count)))
            made = [(file, self.arrays(env, seed, numbers)) for file, numbers in parts]
            write_files(made, about)
        env.close()

    def arrays(self, env: gymnasium.Env, seed: int, numbers: range) -> dict[str, np.ndarray]:
        """Return the arrays of a file: of the episodes of these numbers. env: of `make_ogbench`."""
        maze = Maze(env.unwrapped.maze_map)  # type: ignore[attr-defined]
        found = []
        with progress(total=len(numbers), desc=f"pointmaze-{self.maze}-{self.kind}", unit="episode") as bar:
            for number in numbers:
                found.append(self._episode(env, maze, np.random.default_rng([seed, number])))
                bar.update()
        joined = {name: np.concatenate([each[name] for each in found]) for name in ("observations", "actions")}
        ends = np.arange(len(joined["actions"])) % KINDS[self.kind][1] == KINDS[self.kind][1] - 1
        return joined | {"terminals": ends, "qpos": joined["observations"]}

    def _episode(self, env: gymnasium.Env, maze: Maze, random: np.random.Generator) -> dict[str, np.ndarray]:
        world: Any = env.unwrapped
        pick = lambda cells: cells[random.integers(len(cells))]  # noqa: E731
        near = lambda cell: np.array(world.ij_to_xy(cell)) + random.uniform(-1, 1, 2)  # noqa: E731
        env.reset(seed=int(random.integers(2**31)))
        corners, start = maze.corners(), pick(maze.free)
        target = near(pick(corners) if self.kind == "navigate" else pick(maze.away(start, AWAY) or [start]))
        world.set_xy(near(start))
        rows = KINDS[self.kind][1]
        places, actions = np.empty((rows, 2), np.float32), np.empty((rows, 2), np.float32)
        for row in range(rows):
            world.set_goal(goal_xy=target)
            place = world.get_xy()
            ahead = world.ij_to_xy(maze.next(world.xy_to_ij(place), world.xy_to_ij(target))) - place
            action = ahead / (np.linalg.norm(ahead) + 1e-6) + random.normal(0, NOISE, 2)
            places[row], actions[row] = place, action.clip(-1, 1)
            _, reached, *_ = env.step(actions[row])
            if reached and self.kind == "navigate":
                target = near(pick(corners))
        return {"observations": places, "actions": actions}


MAKERS = {f"ogbench/pointmaze-{maze}-{kind}-v0": PointMazeData(maze, kind) for maze in MAZES for kind in KINDS}
