"""Datasets that can be made again: python -m envs.datasets make ID PATH

The same seed gives the same episodes.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets import manipulation, maze2d, pointmaze, random_actions
from envs.datasets.manipulation import ManipulationData
from envs.datasets.maze2d import Maze2DData
from envs.datasets.mppi import MPPIData
from envs.datasets.pointmaze import PointMazeData
from envs.datasets.random_actions import RandomData
from envs.datasets.vd4rl import KINDS, VD4RL
from envs.experts import VD4RL_TASKS
from envs.experts.mppi import SETTINGS
from envs.go2 import DECISION_SECONDS, JOINTS, LARGEST, NAMES, REACH, Go2, files
from envs.robots import Disturbance, Robots, episodes_of
from mpdiffuser.console import progress
from mpdiffuser.controller import Policy
from mpdiffuser.errors import InputError
from mpdiffuser.files import writing
from mpdiffuser.record import DECLARED, PROPRIOCEPTION, Actions, Observation, Record

FORWARDS, TURN = (0.75, 1.5), 0.5  # m/s, commands of the Go2; rad/s, the largest
STEPS = 500  # of an episode of the Go2
COPIES = 10
CLEAN = (Disturbance(noise=0.01),)
DISTURBED = (Disturbance(noise=0.04), Disturbance(noise=0.12), Disturbance(0.04, push=0.5, chance=0.02))


class Walker(Policy):
    """The policy that comes with the Go2's model, of the projects rl_sar and robot_lab (Apache-2.0).

    Args:
        commands: forward speed, sideways speed (m/s) and turning rate (rad/s) of each robot, (B, 3).

    Raises:
        InputError: if the policy or ONNX Runtime is not installed.
    """

    def __init__(self, commands: np.ndarray) -> None:
        self.commands = np.asarray(commands, np.float32)
        self.network = _network()

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes. The seeds have no effect."""

    def act(self, observations: Any, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, 46) -> actions (B, 12)."""
        sizes = [1, 3, 3, 3, len(JOINTS), len(JOINTS)]
        _, gravity, _, rates, angles, speeds, last = np.split(observations, np.cumsum(sizes), axis=1)
        seen = np.concatenate([0.25 * rates, gravity, self.commands, angles, 0.05 * speeds, last / REACH], 1)
        return (REACH * self.network(seen.astype(np.float32))).clip(-LARGEST, LARGEST).astype(np.float32)


@functools.cache
def _network() -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InputError("the Go2's policy needs ONNX Runtime: pip install 'mpdiffuser[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        files() / "policy" / "policy.onnx", options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name  # it takes one observation
    return lambda seen: np.concatenate([session.run(None, {name: row[None]})[0] for row in seen])


@dataclass(frozen=True)
class Walks:
    """Episodes of the Go2, walking at random commands.

    Args:
        episodes: their number. disturbances: of the episodes, in turn.
    """

    episodes: int
    disturbances: tuple[Disturbance, ...]

    def write(self, path: Path, seed: int) -> None:
        """Write the episodes as an Episodes folder; another seed gives others."""
        Go2().close()  # before any work: is the model there, and can the folder be written?
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        robots, found = Robots({"kind": "go2"}, COPIES), []
        with progress(total=self.episodes, desc="go2", unit="episode") as bar:
            for first in range(0, self.episodes, COPIES):
                numbers = range(first, first + COPIES)
                randoms = [np.random.default_rng([seed, number]) for number in numbers]
                commands = [[r.uniform(*FORWARDS), 0, r.uniform(-TURN, TURN)] for r in randoms]
                disturbances = [self.disturbances[number % len(self.disturbances)] for number in numbers]
                seeds = [int(random.integers(2**31)) for random in randoms]
                found += robots.run(Walker(np.array(commands)), seeds, disturbances, STEPS)
                bar.update(COPIES)
        seen = Observation(PROPRIOCEPTION, (len(NAMES),), NAMES)
        low, high = (tuple(end.tolist()) for end in (-LARGEST, LARGEST))
        info = {"task": "go2", "environment": {"kind": "go2"}, "decision_seconds": DECISION_SECONDS, "seed": seed}
        record = Record({"observations": seen}, Actions(low, high, DECLARED, JOINTS))
        episodes_of(found, info, record).save(path)


MAKERS: dict[str, Walks | VD4RL | Maze2DData | PointMazeData | MPPIData | ManipulationData | RandomData] = {
    "go2/walk": Walks(100, CLEAN),
    "go2/disturbed": Walks(200, DISTURBED),
}
MAKERS |= {f"vd4rl/{task}-{kind}": VD4RL(task, kind) for task in VD4RL_TASKS for kind in KINDS}
MAKERS |= {f"mppi/{task}": MPPIData(task) for task in SETTINGS}
MAKERS |= random_actions.MAKERS
MAKERS |= maze2d.MAKERS
MAKERS |= pointmaze.MAKERS
MAKERS |= manipulation.MAKERS


def make_dataset(name: str, path: Path, seed: int = 0, episodes: int | None = None, **options: Any) -> None:
    """Make a dataset and write it to a new path.

    Args:
        name: of `MAKERS`. path: of the folder or file, which must not exist. seed: of the episodes.
        episodes: number of episodes, for those of sampling MPC; None: 100.
        options: of `envs.datasets.vd4rl.VD4RL.write`.

    Raises:
        InputError: for another name or option, a path that exists, or if what it needs is not installed.
    """
    if name not in MAKERS:
        raise InputError(f"{name}: cannot be made here; these can: {', '.join(MAKERS)}")
    if seed < 0:
        raise InputError(f"--seed: must be 0 or more, found {seed}")
    if path.exists():
        raise InputError(f"{path}: exists already; choose another path or remove it")
    maker = MAKERS[name]
    if episodes is not None:
        if not isinstance(maker, MPPIData):
            raise InputError(f"{name}: --episodes is for the datasets of sampling MPC only, mppi/TASK")
        if episodes < 1:
            raise InputError(f"--episodes: must be at least 1, found {episodes}")
        maker = replace(maker, episodes=episodes)
    if isinstance(maker, VD4RL):
        maker.write(path, seed, **options)
    elif options:
        raise InputError(f"{name}: --{next(iter(options))} is for V-D4RL's datasets only")
    else:
        maker.write(path, seed)
