"""D4RL's maze2d (Fu et al. 2020), made again: a ball in a maze that is pushed in two directions.

Mazes, physics, starts and rewards follow D4RL, in its coordinates: x counts the rows of the maze and y its columns, and
a wall around cell (i, j) is a box of side 1 around (i - 0.2, j - 0.2).
"""

from typing import Any

import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed

MAZES = {  # "#" wall, "O" free, "G" the goal, which is free too
    "umaze": ("#####", "#GOO#", "###O#", "#OOO#", "#####"),
    "medium": ("########", "#OO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OG#", "########"),
    "large": (
        *("############", "#OOOO#OOOOO#", "#O##O#O#O#O#", "#OOOOOO#OOO#", "#O####O###O#"),
        *("#OO#O#OOOOO#", "##O#O#O#O###", "#OO#OOO#OGO#", "############"),
    ),
}
DECISIONS = {"umaze": 300, "medium": 600, "large": 800}  # of an episode
REWARDS = ("sparse", "dense")
NAMES = ("x", "y", "velocity_x", "velocity_y")
DECISION_SECONDS = 0.01
REACHED = 0.5  # the distance from the goal within which the sparse reward is 1
FASTEST = 5.0  # the largest velocity in each direction before a decision
OFFSET = 0.2  # of the ball's coordinates from the cells'
PICTURE = 240  # px a side


def cells(maze: str, kinds: str = "OG") -> list[tuple[int, int]]:
    """Return the row and column of each cell of these kinds."""
    return [(i, j) for i, row in enumerate(MAZES[maze]) for j, kind in enumerate(row) if kind in kinds]


def goal(maze: str) -> np.ndarray:
    """Return the place (2,) of the goal."""
    return np.array(cells(maze, "G")[0], np.float64)


def rewards(places: np.ndarray, maze: str, kind: str) -> np.ndarray:
    """Return the rewards (...) of places (..., 2): 1 near the goal, or exp(-distance) if the kind is dense."""
    distances = np.linalg.norm(places - goal(maze), axis=-1)
    return np.exp(-distances) if kind == "dense" else (distances <= REACHED).astype(np.float64)


class Maze2D(ModelEnv):
    """The ball in the maze. An observation is (4,): place and velocity (`NAMES`). An action is (2,) in [-1, 1].

    An episode begins in a free cell, nearly at rest, and only its time ends it. The goal is always the same; a planner
    that is trained with goals is told it.

    Args:
        observation: "states".
        maze: of `MAZES`. reward: of `REWARDS`.

    Raises:
        InputError: for other values.
    """

    def __init__(self, observation: Observed = "states", maze: str = "umaze", reward: str = "sparse") -> None:
        check_choice("maze2d", "observation", observation, ("states",))
        check_choice("maze2d", "maze", maze, MAZES)
        check_choice("maze2d", "reward", reward, REWARDS)
        self.maze, self.reward = maze, reward
        super().__init__(mujoco.MjModel.from_xml_string(_xml(maze)), PICTURE, DECISION_SECONDS, np.ones(2), len(NAMES))
        self._starts, self._decisions = cells(maze), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode near the middle of a free cell, with a small velocity."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        start = self._starts[self.np_random.integers(len(self._starts))]
        self.data.qpos[:] = start + self.np_random.uniform(-0.1, 0.1, 2)
        self.data.qvel[:] = 0.1 * self.np_random.standard_normal(2)
        mujoco.mj_forward(self.model, self.data)
        self._decisions = 0
        target = np.array([*goal(self.maze), 0, 0], np.float32)  # at rest in the goal
        return self.observe(), self.facts() | {"goal": target}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 10 ms."""
        self.move(action)
        self._decisions += 1
        reward = float(rewards(self.data.qpos, self.maze, self.reward))
        return self.observe(), reward, False, self._decisions >= DECISIONS[self.maze], self.facts()

    def move(self, action: np.ndarray) -> None:
        """Push the ball for one decision by the action (2,), which is clipped to [-1, 1]."""
        self.data.ctrl[:] = self.clipped(action)
        self.data.qvel[:] = self.data.qvel.clip(-FASTEST, FASTEST)
        mujoco.mj_step(self.model, self.data)

    def observe(self) -> np.ndarray:
        """Return the observation (4,) float32."""
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)


def _xml(maze: str) -> str:
    """Return the model of a maze; the floor and the goal are only drawn."""
    wall = '<geom type="box" size=".5 .5 .2" rgba=".7 .5 .3 1" pos="{} {} 0"/>'
    walls = "".join(wall.format(i - OFFSET, j - OFFSET) for i, j in cells(maze, "#"))
    height, width = len(MAZES[maze]), len(MAZES[maze][0])
    middle, far = (height / 2 - 0.5 - OFFSET, width / 2 - 0.5 - OFFSET), 1.3 * max(height, width)
    seen = 'contype="0" conaffinity="0"'
    x, y = goal(maze)
    return f"""
<mujoco model="maze2d">
  <option timestep="{DECISION_SECONDS}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint type="slide" damping="1"/>
    <geom friction=".5 .1 .1" density="1000" margin=".002" condim="1"/>
    <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <light pos="{middle[0]} {middle[1]} {far}" dir="0 0 -1" directional="true"/>
    <camera pos="{middle[0]} {middle[1]} {far}" xyaxes="0 1 0 -1 0 0"/>
    <geom type="plane" size="40 40 .25" pos="0 0 -.1" rgba=".25 .3 .35 1" {seen}/>
    <geom type="cylinder" size=".2 .01" pos="{x} {y} -.08" rgba=".7 .2 .2 1" {seen} mass="0"/>
    {walls}
    <body>
      <geom name="ball" type="sphere" size=".1" rgba=".3 .8 .3 1"/>
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/>
    <motor joint="y"/>
  </actuator>
</mujoco>"""
