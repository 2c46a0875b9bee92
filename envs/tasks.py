"""What is known of the public offline tasks: environment, episode length, return range, files.

D4RL (Fu et al. 2020) scores 100 (R - low) / (high - low). DSRL (Liu et al. 2023) scores rewards
(R - low) / (high - low) and costs C / limit, averaged over its cost limits.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from mpdiffuser.errors import InputError

D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
DSRL_URL = "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/"


@dataclass(frozen=True)
class OfflineTask:
    """A task of a public suite.

    Args:
        name: the suite's id. suite: "d4rl" or "dsrl".
        env_id: the gymnasium environment that equals it, None where there is none.
        episode_steps: time limit.
        low, high: returns of score 0 and of score 1 (100 in D4RL), None where the suite has none.
        file, url: the public file's name and address.
        limits: cost limits to be evaluated at.
        speed_limit: a step faster than this costs 1 (m/s), None where costs come another way or not at all.
    """

    name: str
    suite: str
    env_id: str | None
    episode_steps: int
    low: float | None
    high: float | None
    file: str
    url: str
    limits: tuple[float, ...] = ()
    speed_limit: float | None = None

    def score(self, returns: float) -> float | None:
        """The suite's normalised score of a return."""
        if self.low is None or self.high is None:
            return None
        return (100.0 if self.suite == "d4rl" else 1.0) * (returns - self.low) / (self.high - self.low)

    def cache(self) -> Path:
        """The folder where the suite keeps its files."""
        variable = f"{self.suite.upper()}_DATASET_DIR"
        return Path(os.environ.get(variable) or Path.home() / f".{self.suite}" / "datasets")


# environment: gymnasium's equal of D4RL's, low, high
LOCOMOTION = {
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "ant": ("Ant-v4", -325.6, 3879.7),
}
QUALITIES = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
# low, high, largest cost and number of episodes in the file's name, speed limit
VELOCITY = {
    "Ant": (6.1519012451171875, 2976.276611328125, "250-2249", 2.6222),
    "HalfCheetah": (5.7509765625, 2806.93310546875, "250-2495", 3.2096),
    "Hopper": (37.05154800415039, 1911.396728515625, "250-2240", 0.7402),
    "Swimmer": (0.07114458084106445, 238.95831298828125, "200-1686", 0.2282),
    "Walker2d": (18.668498992919922, 3418.223876953125, "300-2729", 2.3415),
}


def _locomotion() -> list[OfflineTask]:
    tasks = []
    for robot, (env_id, low, high) in LOCOMOTION.items():
        for quality in QUALITIES:
            file = f"{robot}_{quality.replace('-', '_')}-v2.hdf5"
            address = f"{D4RL_URL}gym_mujoco_v2/{file}"
            tasks.append(OfflineTask(f"{robot}-{quality}-v2", "d4rl", env_id, 1000, low, high, file, address))
    return tasks


def _velocity() -> list[OfflineTask]:
    tasks = []
    for robot, (low, high, counts, speed) in VELOCITY.items():
        file = f"Safety{robot}VelocityGymnasium-v1-{counts}.hdf5"
        name = f"Offline{robot}VelocityGymnasium-v1"
        limits = (20.0, 40.0, 80.0)
        tasks.append(OfflineTask(name, "dsrl", f"{robot}-v4", 1000, low, high, file, DSRL_URL + file, limits, speed))
    return tasks


TASKS = {task.name: task for task in [*_locomotion(), *_velocity()]}


def find_offline_task(name: str, suite: str | None = None) -> OfflineTask:
    """The task of an id.

    Raises:
        InputError: for an unknown id, with those nearest to it.
    """
    known = [key for key, task in TASKS.items() if suite in (None, task.suite)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, 0.4) or known[:5]
        raise InputError(
            f"task={suite or ''}{'/' if suite else ''}{name}: no such task; did you mean {', '.join(near)}?"
        )
    return TASKS[name]


def find_file(task: OfflineTask, data_dir: str | Path | None = None) -> tuple[Path, bool]:
    """The task's file, and whether it is a stand-in: a file under another name than the public one.

    Looked for in data_dir, else in the suite's own folder, under the public name, the id, and the id without version.

    Raises:
        InputError: if it is in none of these places.
    """
    folder = Path(data_dir) if data_dir else task.cache()
    plain = task.name.removeprefix("Offline").partition("-v")[0]
    short = f"Safety{plain.removesuffix('Gymnasium')}" if task.suite == "dsrl" else plain
    tried = [folder / name for name in (task.file, f"{task.name}.hdf5", f"{short}.hdf5")]
    for file in tried:
        if file.is_file():
            return file, file.name != task.file
    raise InputError(
        f"{task.suite}/{task.name}: no file; tried {', '.join(map(str, tried))}; it is public at {task.url}: download "
        f"it into {task.cache()}, or say where it lies with data_dir="
    )
