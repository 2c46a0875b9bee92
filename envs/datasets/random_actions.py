"""D4RL's random data, made again: python -m envs.datasets make d4rl/hopper-random-v2 FOLDER/hopper-random-v2.hdf5

Random actions in gymnasium's environment of the task. The file has D4RL's layout. The same seed gives the same rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from envs.datasets.d4rl_file import write_d4rl
from envs.datasets.tasks import LOCOMOTION
from envs.gym_env import make_registered
from mpdiffuser.console import progress

ROWS = 1_000_000
STEPS = 1000  # of an episode that does not terminate
FORCES = {"ant": 84}  # columns of contact forces, which are 0 in D4RL's file and left out by gymnasium
DIFFERENCES = (
    "the actions are uniform between their bounds; D4RL's are those of a network with random weights",
    "each file has a million rows, and its last episode is cut off there",
    "starts and actions are drawn by other generators of random numbers, and the simulator is a newer MuJoCo",
)


@dataclass(frozen=True)
class RandomData:
    """The data of a robot.

    Args:
        robot: of `LOCOMOTION`. rows: their number.
    """

    robot: str
    rows: int = ROWS

    def write(self, path: Path, seed: int) -> None:
        """Write the file; another seed gives other rows.

        Raises:
            InputError: for a path that does not end in .hdf5, or cannot be written.
        """
        write_d4rl(path, self.arrays, seed, DIFFERENCES)

    def arrays(self, seed: int) -> dict[str, np.ndarray]:
        """Return the arrays of the file, each with N rows."""
        random, env = np.random.default_rng(seed), make_registered(LOCOMOTION[self.robot][0])
        space, (width,), more = env.action_space, env.observation_space.shape or (), FORCES.get(self.robot, 0)
        assert isinstance(space, Box)
        seen, following = (np.zeros((self.rows, width + more), np.float32) for _ in range(2))
        actions = np.empty((self.rows, *space.shape), np.float32)
        rewards = np.empty(self.rows, np.float32)
        ends = {name: np.zeros(self.rows, bool) for name in ("terminals", "timeouts")}
        over, since = True, 0
        with progress(total=self.rows, desc=f"{self.robot}-random", unit="row", unit_scale=True) as bar:
            for row in range(self.rows):
                if over:
                    observation, since = env.reset(seed=int(random.integers(2**31)))[0], 0
                actions[row] = random.uniform(space.low, space.high)
                seen[row, :width] = np.asarray(observation)
                observation, rewards[row], ends["terminals"][row], _, _ = env.step(actions[row])
                following[row, :width] = np.asarray(observation)
                since += 1
                late = since == STEPS or row == self.rows - 1
                ends["timeouts"][row] = late and not ends["terminals"][row]
                over = late or ends["terminals"][row]
                if row % 10_000 == 9_999:
                    bar.update(10_000)
        env.close()
        return {
            "observations": seen,
            "actions": actions,
            "rewards": rewards,
            **ends,
            "next_observations": following,
        }


MAKERS = {f"d4rl/{robot}-random-v2": RandomData(robot) for robot in LOCOMOTION}
