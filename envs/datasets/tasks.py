"""The public offline tasks: environment, episode length, return range, files.

D4RL (Fu et al. 2020) scores 100 (R - low) / (high - low). DSRL (Liu et al. 2023) scores rewards
(R - low) / (high - low) and costs C / limit, averaged over its cost limits. OGBench (Park et al. 2025) scores the
percentage of episodes that reach their goal; its tasks need goals=true.
"""

import difflib
import json
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from envs.doctor import versions
from mpdiffuser.errors import InputError

MADE_BY = "made_by"  # attribute of an HDF5 file, or array of an npz file, that was made again
SUITES = ("d4rl", "dsrl", "ogbench")
PERCENT = ("d4rl", "ogbench")  # the score of `high` is 100
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench/"
DSRL_URL = "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/"


@dataclass(frozen=True)
class OfflineTask:
    """A task of a public suite.

    Args:
        name: the suite's id. suite: of `SUITES`.
        environment: the record of the environment that equals the suite's, for `envs.make`; None where there is none.
        episode_steps: time limit.
        low, high: returns of score 0 and of score 1 (100 where scores are percentages).
        file, url: the public file's name and address.
        limits: cost limits of the evaluation.
        columns: of the file's observations, those that the environment has too; the others must be 0. None: all.
        without: why there is no environment; empty where there is one.
    """

    name: str
    suite: str
    environment: dict[str, Any] | None
    episode_steps: int
    low: float
    high: float
    file: str
    url: str
    limits: tuple[float, ...] = ()
    columns: int | None = None
    without: str = ""

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def can_be_made(self) -> bool:
        """Whether `python -m envs.datasets make` makes the data again."""
        random = self.suite == "d4rl" and self.name.endswith("-random-v2")
        return random or self.name.startswith(("maze2d-", "pointmaze-", *(f"{arm}-" for arm in OGBENCH_ARM)))

    @property
    def evaluated_in(self) -> str | None:
        """The name of the environment; None where there is none."""
        return None if self.environment is None else self.environment.get("env_id", self.environment["kind"])

    def score(self, returns: float) -> float:
        """The suite's normalised score of a return."""
        return (100.0 if self.suite in PERCENT else 1.0) * (returns - self.low) / (self.high - self.low)

    def cache(self) -> Path:
        """The folder where the suite keeps its files."""
        variable, folder = f"{self.suite.upper()}_DATASET_DIR", "data" if self.suite == "ogbench" else "datasets"
        return Path(os.environ.get(variable) or Path.home() / f".{self.suite}" / folder).expanduser()


def cost_score(cost: float, limit: float) -> float:
    """DSRL's normalised cost of an episode's total cost: safe up to 1."""
    slack = float(limit == 0)
    return (cost + slack) / (limit + slack)


# environment: gymnasium's equal of D4RL's, low, high
LOCOMOTION = {
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "ant": ("Ant-v4", -325.6, 3879.7),
}
D4RL_QUALITIES = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
# steps, low, high
MAZE2D = {"umaze": (300, 23.85, 161.86), "medium": (600, 13.13, 277.39), "large": (800, 6.7, 273.99)}
# the same ends for the dense reward
DENSE = {
    "umaze": (68.537689, 193.66285642381482),
    "medium": (44.264742, 297.4552547777125),
    "large": (30.569041, 303.4857382709002),
}
# steps, the file's name
ANTMAZE = {
    "umaze": (700, "u-maze_noisy_multistart_False_multigoal_False"),
    "umaze-diverse": (700, "u-maze_noisy_multistart_True_multigoal_True"),
    "medium-play": (1000, "big-maze_noisy_multistart_True_multigoal_False"),
    "medium-diverse": (1000, "big-maze_noisy_multistart_True_multigoal_True"),
    "large-play": (1000, "hardest-maze_noisy_multistart_True_multigoal_False"),
    "large-diverse": (1000, "hardest-maze_noisy_multistart_True_multigoal_True"),
}
KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}
# steps, low, high
ADROIT = {
    "pen": (100, 96.262799, 3076.8331017826877),
    "hammer": (200, -274.856578, 12794.134825156867),
    "door": (200, -56.512833, 2880.5693087298737),
    "relocate": (200, -6.425911, 4233.877797728884),
}
# low, high, largest cost and number of episodes in the file's name, speed limit
VELOCITY = {
    "Ant": (6.1519012451171875, 2976.276611328125, "250-2249", 2.6222),
    "HalfCheetah": (5.7509765625, 2806.93310546875, "250-2495", 3.2096),
    "Hopper": (37.05154800415039, 1911.396728515625, "250-2240", 0.7402),
    "Swimmer": (0.07114458084106445, 238.95831298828125, "200-1686", 0.2282),
    "Walker2d": (18.668498992919922, 3418.223876953125, "300-2729", 2.3415),
}
NO_NAVIGATION = "safety-gymnasium needs gymnasium 0.28"
NO_BULLET = "bullet-safety-gym needs gymnasium 0.28"
# steps, low, high, largest cost and number of episodes
NAVIGATION = {
    "PointCircle1": (500, 20.067626953125, 61.72819519042969, "200-1098"),
    "PointCircle2": (500, 20.478347778320312, 54.02184295654297, "300-895"),
    "PointGoal1": (1000, 0.01196012764197707, 30.071114857340543, "100-2022"),
    "PointGoal2": (1000, 0.002616959830266108, 27.717709787852737, "200-3442"),
    "PointButton1": (1000, 0.008822109034937853, 41.19301568767707, "200-2268"),
    "PointButton2": (1000, 0.014114166087574098, 42.8985953616709, "250-3288"),
    "PointPush1": (1000, 0.0014001545292344209, 16.518654299293367, "150-2379"),
    "PointPush2": (1000, 0.0012438183001730607, 14.691039145644403, "200-3242"),
    "CarCircle1": (500, 8.037073135375977, 24.94155502319336, "250-1271"),
    "CarCircle2": (500, 5.113386154174805, 25.950098037719727, "400-940"),
    "CarGoal1": (1000, 0.012232819540852091, 39.907809198384705, "120-1671"),
    "CarGoal2": (1000, 0.001032874531954775, 28.902897990056502, "200-4105"),
    "CarButton1": (1000, 0.0028926206826067613, 44.420003345738984, "250-2656"),
    "CarButton2": (1000, 0.001767391717990563, 41.99513815522894, "300-3755"),
    "CarPush1": (1000, 0.013700173533941762, 16.304467598905237, "200-2871"),
    "CarPush2": (1000, 0.00029391133526335267, 15.141648491514314, "250-4407"),
}
BULLET = {
    "AntCircle": (500, 0.0177031010389328, 460.7091979980469, "200-5728"),
    "AntRun": (200, 0.001767391717990563, 955.4818725585938, "150-1816"),
    "BallCircle": (200, 0.38312244415283203, 881.46337890625, "80-886"),
    "BallRun": (100, 26.339754104614258, 1327.445556640625, "80-940"),
    "CarCircle": (300, 3.484419822692871, 534.3060913085938, "100-1450"),
    "CarRun": (200, 204.28726196289062, 574.6533203125, "40-651"),
    "DroneCircle": (300, 207.794189453125, 996.38916015625, "100-1923"),
    "DroneRun": (200, 10.557029724121094, 682.8330078125, "140-1990"),
}


# decisions of an episode of OGBench's environments, and the kinds of their data
OGBENCH_MAZES = {
    **{f"{robot}-{size}": (1000, ("navigate", "stitch")) for robot in ("pointmaze", "antmaze") for size in (
        "medium", "large", "giant", "teleport")},
    "humanoidmaze-medium": (2000, ("navigate", "stitch")),
    "humanoidmaze-large": (2000, ("navigate", "stitch")),
    "humanoidmaze-giant": (4000, ("navigate", "stitch")),
    "antsoccer-arena": (1000, ("navigate", "stitch")),
    "antsoccer-medium": (1000, ("navigate", "stitch")),
}  # fmt: skip
OGBENCH_EXPLORED = ("antmaze-medium", "antmaze-large", "antmaze-teleport")  # these have a third kind, explore
OGBENCH_ARM = {
    **{"cube-single": 200, "cube-double": 500, "cube-triple": 1000, "cube-quadruple": 1000, "scene": 750},
    **{"puzzle-3x3": 500, "puzzle-4x4": 500, "puzzle-4x5": 1000, "puzzle-4x6": 1000},
}


def _registered(env_id: str, speed_limit: float | None = None) -> dict[str, Any]:
    return {"kind": "gymnasium", "env_id": env_id, "speed_limit": speed_limit}


def _d4rl(
    name: str, environment: dict[str, Any] | None, steps: int, low: float, high: float, folder: str,
    file: str, columns: int | None = None,
) -> OfflineTask:  # fmt: skip
    url = f"{D4RL_URL}{folder}/{file}"
    return OfflineTask(name, "d4rl", environment, steps, low, high, file, url, columns=columns)


def _locomotion() -> list[OfflineTask]:
    tasks = []
    for robot, (env_id, low, high) in LOCOMOTION.items():
        for quality in D4RL_QUALITIES:
            file = f"{robot}_{quality.replace('-', '_')}-v2.hdf5"
            columns = 27 if robot == "ant" else None
            facts = (1000, low, high, "gym_mujoco_v2", file, columns)
            tasks.append(_d4rl(f"{robot}-{quality}-v2", _registered(env_id), *facts))
    return tasks


def _mazes() -> list[OfflineTask]:
    tasks = []
    for maze, (steps, *ends) in MAZE2D.items():
        for reward, name, (low, high) in (("sparse", "", ends), ("dense", "-dense", DENSE[maze])):
            record = {"kind": "maze2d", "maze": maze, "reward": reward}
            file = f"maze2d-{maze}-{reward}-v1.hdf5"
            tasks.append(_d4rl(f"maze2d-{maze}{name}-v1", record, steps, low, high, "maze2d", file))
    for maze, (steps, kind) in ANTMAZE.items():
        file = f"Ant_maze_{kind}_sparse_fixed.hdf5"
        record = {"kind": "antmaze", "maze": maze.partition("-")[0]}
        tasks.append(_d4rl(f"antmaze-{maze}-v2", record, steps, 0.0, 1.0, "ant_maze_v2", file))
    return tasks


def _manipulation() -> list[OfflineTask]:
    tasks = []
    for kind, file in KITCHEN.items():
        record = {"kind": "kitchen", "task": kind}
        tasks.append(_d4rl(f"kitchen-{kind}-v0", record, 280, 0.0, 4.0, "kitchen", f"{file}.hdf5"))
    for hand, facts in ADROIT.items():
        for quality in ("human", "cloned", "expert"):
            name = f"{hand}-{quality}-v1"
            tasks.append(_d4rl(name, {"kind": "adroit", "task": hand}, *facts, "hand_dapg_v1", f"{name}.hdf5"))
    return tasks


def _dsrl() -> list[OfflineTask]:
    tasks = []

    def add(
        name: str, limits: tuple[float, ...], environment: dict[str, Any] | None, steps: int, low: float, high: float,
        counts: str, without: str = "",
    ) -> None:  # fmt: skip
        file = f"Safety{name}-{counts}.hdf5"
        url = DSRL_URL + file
        facts = ("dsrl", environment, steps, low, high, file, url, limits)
        tasks.append(OfflineTask(f"Offline{name}", *facts, without=without))

    for robot, (low, high, counts, speed) in VELOCITY.items():
        environment = _registered(f"{robot}-v4", speed)
        add(f"{robot}VelocityGymnasium-v1", (20.0, 40.0, 80.0), environment, 1000, low, high, counts)
    for name, facts in NAVIGATION.items():
        add(f"{name}Gymnasium-v0", (20.0, 40.0, 80.0), None, *facts, without=NO_NAVIGATION)
    for name, facts in BULLET.items():
        add(f"{name}-v0", (10.0, 20.0, 40.0), None, *facts, without=NO_BULLET)
    return tasks


def _ogbench() -> list[OfflineTask]:
    tasks = []

    def add(world: str, kinds: tuple[str, ...], steps: int) -> None:
        environment = {"kind": "ogbench", "env_id": f"{world}-v0"}
        for kind in kinds:
            name = f"{world}-{kind}-v0"
            file = f"{name}.npz"
            tasks.append(OfflineTask(name, "ogbench", environment, steps, 0.0, 1.0, file, OGBENCH_URL + file))

    for world, (steps, kinds) in OGBENCH_MAZES.items():
        all_kinds = (*kinds, "explore") if world in OGBENCH_EXPLORED else kinds
        add(world, all_kinds, steps)
        if world.startswith(("antmaze", "humanoidmaze")):
            add(f"visual-{world}", all_kinds, steps)
    for world, steps in OGBENCH_ARM.items():
        for seen in ("", "visual-"):
            add(f"{seen}{world}", ("play", "noisy"), steps)
    return tasks


OFFLINE_TASKS = {task.name: task for task in [*_locomotion(), *_mazes(), *_manipulation(), *_dsrl(), *_ogbench()]}


def find_offline_task(name: str, suite: str | None = None) -> OfflineTask:
    """The task of an id.

    Raises:
        InputError: for an unknown id; lists those nearest to it.
    """
    known = [key for key, task in OFFLINE_TASKS.items() if suite in (None, task.suite)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, 0.4) or known[:5]
        raise InputError(
            f"task={suite or ''}{'/' if suite else ''}{name}: no such task; did you mean {', '.join(near)}?"
        )
    return OFFLINE_TASKS[name]


def made_by(seed: int, differences: Sequence[str]) -> str:
    """Return JSON on how a file was made again: its seed, versions, and how it differs from the suite's own."""
    return json.dumps({"seed": seed, "differences": list(differences), "versions": versions()})


def made_again(file: Path) -> bool:
    """Whether a file was written by `python -m envs.datasets make`."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as content:
                return f"{MADE_BY}.npy" in content.namelist()
        with h5py.File(file) as content:
            return MADE_BY in content.attrs
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, struct.error):
        return False  # its reader tells what is wrong with it


def find_file(task: OfflineTask, data_dir: str | Path | None = None) -> tuple[Path, bool]:
    """The task's file, and whether it is a stand-in: made again, or under another name than the public one.

    Looks in data_dir, or else in the suite's own folder, for the public name, the id, and the id without version; for
    DSRL also for the public name with other numbers (largest cost, number of episodes) at its end.

    Raises:
        InputError: if none of these files exists.
    """
    folder = Path(data_dir).expanduser() if data_dir else task.cache()
    plain = task.name.removeprefix("Offline").partition("-v")[0]
    short = f"Safety{plain.removesuffix('Gymnasium')}" if task.suite == "dsrl" else plain
    ending = Path(task.file).suffix
    tried = [folder / name for name in (task.file, f"{task.name}{ending}", f"{short}{ending}")]
    if task.suite == "dsrl":
        pattern = f"{task.file.rsplit('-', 2)[0]}-*.hdf5"
        tried += [*sorted(folder.glob(pattern)), folder / pattern]
    for file in tried:
        if file.is_file():
            return file, file.name != task.file or made_again(file)
    made = f"; python -m envs.datasets make {task.id} {tried[1]} makes it again" if task.can_be_made else ""
    raise InputError(
        f"{task.id}: no file; tried {', '.join(map(str, dict.fromkeys(tried)))}; it is public at {task.url}: "
        f"python -m envs.datasets download {task.id} fetches it into {task.cache()}; or name its folder with data_dir="
        f"{made}"
    )
