"""D4RL's random data, made again: python -m envs.datasets make d4rl/hopper-random-v2 FOLDER/hopper-random-v2.hdf5

Random actions in gymnasium's environment of the task. The file has D4RL's layout. The same seed gives the same rows.
Each part of the rows is made by one process, and kept until the file is there, so a command that was cut off goes on.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from envs.datasets.d4rl_file import write_d4rl
from envs.datasets.episode_files import make_files
from envs.datasets.tasks import LOCOMOTION, made_by
from envs.gym_env import make_registered
from mpdiffuser.files import release, replacing

ROWS = 1_000_000
PART = 50_000  # rows
STEPS = 1000  # of an episode that does not terminate
FORCES = {"ant": 84}  # columns of contact forces, which are 0 in D4RL's file and left out by gymnasium
DIFFERENCES = (
    "the actions are uniform between their bounds; D4RL's are those of a network with random weights",
    "each file has a million rows, and an episode is cut off after every 50,000 of them",
    "starts and actions are drawn by other generators of random numbers, and the simulator is a newer MuJoCo",
)


@dataclass(frozen=True)
class RandomData:
    """The data of a robot.

    Args:
        robot: of `LOCOMOTION`. rows: their number. part: rows of a part.
    """

    robot: str
    rows: int = ROWS
    part: int = PART

    def write(self, path: Path, seed: int) -> None:
        """Write the file, or go on where it was cut off; another seed gives other rows.

        Raises:
            InputError: for a path that does not end in .hdf5, or cannot be written.
        """
        unfinished = path.with_name(path.stem + ".parts")
        write_d4rl(path, partial(self._made, unfinished), seed, DIFFERENCES)
        release(unfinished)
        shutil.rmtree(unfinished)

    def _made(self, unfinished: Path, seed: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of the file, from the files of its parts."""
        identity = {"robot": self.robot, "rows": self.rows, "part": self.part, "made_by": made_by(seed, DIFFERENCES)}
        names = [f"{number:03d}.npz" for number in range(-(-self.rows // self.part))]
        files = make_files(unfinished, identity, names, partial(_write_part, self, seed), unfinished.stem, "part")
        with np.load(files[0]) as first:
            return {name: _joined(files, name) for name in first.files}

    def arrays(self, seed: int, number: int = 0) -> dict[str, np.ndarray]:
        """Return the arrays of a part, each with N rows."""
        random, env = np.random.default_rng([seed, number]), make_registered(LOCOMOTION[self.robot][0])
        space, (width,), more = env.action_space, env.observation_space.shape or (), FORCES.get(self.robot, 0)
        assert isinstance(space, Box)
        rows = min(self.part, self.rows - number * self.part)
        seen, following = (np.zeros((rows, width + more), np.float32) for _ in range(2))
        actions = np.empty((rows, *space.shape), np.float32)
        rewards = np.empty(rows, np.float32)
        ends = {name: np.zeros(rows, bool) for name in ("terminals", "timeouts")}
        over, since = True, 0
        for row in range(rows):
            if over:
                observation, since = env.reset(seed=int(random.integers(2**31)))[0], 0
            actions[row] = random.uniform(space.low, space.high)
            seen[row, :width] = np.asarray(observation)
            observation, rewards[row], ends["terminals"][row], _, _ = env.step(actions[row])
            following[row, :width] = np.asarray(observation)
            since += 1
            late = since == STEPS or row == rows - 1
            ends["timeouts"][row] = late and not ends["terminals"][row]
            over = late or ends["terminals"][row]
        env.close()
        return {
            "observations": seen,
            "actions": actions,
            "rewards": rewards,
            **ends,
            "next_observations": following,
        }


def _write_part(data: RandomData, seed: int, number: int, file: Path) -> None:
    arrays = data.arrays(seed, number)
    with replacing(file) as handle:
        np.savez(handle, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _joined(files: Sequence[Path], name: str) -> np.ndarray:
    parts = []
    for file in files:
        with np.load(file) as part:
            parts.append(part[name])
    return np.concatenate(parts)


MAKERS = {f"d4rl/{robot}-random-v2": RandomData(robot) for robot in LOCOMOTION}
