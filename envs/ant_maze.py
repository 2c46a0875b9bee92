"""D4RL's antmaze (Fu et al. 2020), made again: an ant walks through a maze to a goal.

Mazes, physics, starts, goals and rewards follow D4RL, in its coordinates: the start is the origin, x grows with the
columns of the maze and y with its rows, and a cell is 4 m wide. The ant is gymnasium's, with D4RL's time step, contacts
and torques.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.model_env import ModelEnv, check_choice
from envs.observations import Observed

MAZES = {  # "#" wall, "O" free, "S" the start, "G" the goal; both are free too
    "umaze": ("#####", "#SOO#", "###O#", "#GOO#", "#####"),
    "medium": ("########", "#SO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OG#", "########"),
    "large": (
        *("############", "#SOOO#OOOOO#", "#O##O#O#O#O#", "#OOOOOO#OOO#", "#O####O###O#"),
        *("#OO#O#OOOOO#", "##O#O#O#O###", "#OO#OOO#OGO#", "############"),
    ),
}
DECISIONS = {"umaze": 700, "medium": 1000, "large": 1000}  # of an episode
CELL, HEIGHT = 4.0, 2.0  # of the maze, m
SUBSTEPS, TIMESTEP = 5, 0.02  # of a decision, s
TORQUE = 30.0  # Nm of an action of 1
CONTACT = (0.8, 0.8, 0.01)  # MuJoCo's solimp
POSITIONS, VELOCITIES = 15, 14  # entries of an observation; the first two positions are the place
MOTORS = 8
REACHED = 0.5  # the distance from the goal within which the reward is 1, m
PICTURE = 240  # px a side


def places(maze: str, kind: str) -> np.ndarray:
    """Return the places (k, 2) of the middles of all cells of a kind."""
    rows = MAZES[maze]
    i, j = next((i, row.index("S")) for i, row in enumerate(rows) if "S" in row)
    found = [(b - j, a - i) for a, row in enumerate(rows) for b, each in enumerate(row) if each == kind]
    return CELL * np.array(found, np.float64)


class AntMaze(ModelEnv):
    """The ant in the maze. An observation is (29,): 15 positions and 14 velocities of MuJoCo. An action is (8,) in
    [-1, 1].

    The reward is 1 at the goal, where the episode ends, and 0 before. Each episode has a goal of its own near the
    maze's goal cell; a planner that is trained with goals is told it. Entries 0 and 1 are the ant's place.

    Args:
        observation: "states".
        maze: of `MAZES`.

    Raises:
        InputError: for other values.
    """

    def __init__(self, observation: Observed = "states", maze: str = "umaze") -> None:
        check_choice("antmaze", "observation", observation, ("states",))
        check_choice("antmaze", "maze", maze, MAZES)
        self.maze = maze
        super().__init__(_model(maze), PICTURE, SUBSTEPS * TIMESTEP, np.ones(MOTORS), POSITIONS + VELOCITIES)
        self.goal, self._decisions = places(maze, "G")[0], 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode near the origin, with a goal up to 1.5 m from the middle of its cell in x and y."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        random = self.np_random
        self.data.qpos += random.uniform(-0.1, 0.1, POSITIONS)
        self.data.qvel[:] = 0.1 * random.standard_normal(VELOCITIES)
        middle = places(self.maze, "G")[0]
        self.goal = middle + random.uniform(0, CELL / 4, 2) + random.uniform(0, CELL / 8, 2)
        mujoco.mj_forward(self.model, self.data)
        self._decisions = 0
        wanted = np.concatenate([self.goal, self.model.qpos0[2:], np.zeros(VELOCITIES)]).astype(np.float32)
        return self.observe(), self.facts() | {"goal": wanted}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take one decision of 0.1 s."""
        self.move(action)
        self._decisions += 1
        reached = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= REACHED)
        late = self._decisions >= DECISIONS[self.maze] and not reached
        return self.observe(), float(reached), reached, late, self.facts()

    def move(self, action: np.ndarray) -> None:
        """Move the ant for one decision by the action (8,), which is clipped to [-1, 1]."""
        self.data.ctrl[:] = self.clipped(action)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def observe(self) -> np.ndarray:
        """Return the observation (29,) float32."""
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)


def _model(maze: str) -> mujoco.MjModel:
    """Return gymnasium's ant with D4RL's constants, within the walls of a maze."""
    found = importlib.util.find_spec("gymnasium")
    assert found is not None and found.submodule_search_locations
    ant = Path(found.submodule_search_locations[0]) / "envs" / "mujoco" / "assets" / "ant.xml"
    spec = mujoco.MjSpec.from_file(str(ant))
    spec.option.timestep = TIMESTEP
    for motor in spec.actuators:
        motor.gear[0] = TORQUE
    walls = places(maze, "#")
    for x, y in walls:
        wall = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=[x, y, HEIGHT / 2], rgba=[0.7, 0.5, 0.3, 1])
        wall.size[:] = CELL / 2, CELL / 2, HEIGHT / 2
        wall.conaffinity = 1
    for geom in spec.geoms:
        geom.solimp[:3] = CONTACT
    spec.delete(spec.cameras[0])
    low, high = walls.min(0), walls.max(0)
    spec.worldbody.add_camera(pos=[*(low + high) / 2, 1.3 * (high - low).max()])
    return spec.compile()
