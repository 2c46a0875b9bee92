"""OGBench's cube, scene and puzzle data, made again: python -m envs.datasets make ogbench/cube-single-play-v0 FILE.npz

The oracles of OGBench's package control a robot arm, and choose a new target where they have reached one:

    play    plans with correlated noise
    noisy   a policy of the state with noise of the actions, of another size in each episode, and some random actions

The file has OGBench's layout. A second one, FILE-val.npz, has a tenth as many episodes. The same seed gives the same
rows. Needs OGBench's package.
"""

import importlib
import itertools
import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.datasets.episode_files import make_files
from envs.datasets.pointmaze import validation_file, write_files
from envs.datasets.tasks import OGBENCH_ARM, made_by
from envs.ogbench import import_package
from mpdiffuser.files import release, replacing, writing

KINDS = ("play", "noisy")
EPISODES = dict.fromkeys(OGBENCH_ARM, 1000) | {"cube-triple": 3000, "cube-quadruple": 5000}
EPISODES |= {"puzzle-4x5": 3000, "puzzle-4x6": 5000}
ROWS = 1001  # of an episode
PLANS = {"noise": 0.1, "noise_smoothing": 0.5}  # of the oracles of play
MIN_NORM = 0.4  # of the oracles of noisy: shorter ways are lengthened to it
# of noisy: the largest standard deviation of the actions' noise, and its multiple for each entry of an action
NOISE, MULTIPLES = 0.1, np.array([1, 1, 1, 3, 10])
RANDOM_SHARE = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}  # of the actions in noisy
# range of an episode's chance that a cube is put on another; tasks with one cube or none have no stacks
STACKING = {"cube-double": (0.0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5), "scene": (0.5, 0.5)}
CUBE = slice(14, 17)  # the cube's place in scene's qpos
DIFFERENCES = ("all that is random is drawn by other generators of random numbers",)


@dataclass(frozen=True)
class ManipulationData:
    """The data of a task.

    Args:
        task: of `EPISODES`. kind: of `KINDS`. episodes: their number; None: OGBench's. rows: of an episode.
    """

    task: str
    kind: str
    episodes: int | None = None
    rows: int = ROWS

    def write(self, path: Path, seed: int) -> None:
        """Write both files, or go on where it was cut off; another seed gives other rows.

        Raises:
            InputError: for a path that does not end in .npz, exists, or cannot be written, or without the package.
        """
        second = validation_file(path)
        import_package()
        count = self.episodes or EPISODES[self.task]
        numbers = range(count + max(1, count // 10))  # the last ones are those of the second file
        about = made_by(seed, DIFFERENCES)
        unfinished = path.with_name(path.stem + ".episodes")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            identity = {"task": self.task, "kind": self.kind, "count": count, "rows": self.rows, "made_by": about}
            names = [f"{number:05d}.npz" for number in numbers]
            files = make_files(unfinished, identity, names, partial(_write_episode, self, seed), path.stem)
            parts = ((second, files[count:]), (path, files[:count]))
            write_files(((file, _joined(part)) for file, part in parts), about)
            release(unfinished)
            shutil.rmtree(unfinished)

    def episode(self, seed: int, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of an episode, (rows, ...)."""
        attempts = (self._attempt(np.random.default_rng([seed, number, k])) for k in itertools.count())
        return next(each for each in attempts if self.task != "scene" or in_sight(each["qpos"][:, CUBE]))

    def _attempt(self, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of an episode, (rows, ...), which may not be good enough."""
        env, robot = _environment(self.task, self.rows), self.task.partition("-")[0]
        np.random.seed(random.integers(2**32))  # the oracles draw from numpy's global generator
        seen, info = env.reset(seed=int(random.integers(2**31)))
        oracles = _oracles(env, robot, self.kind)
        stacking = random.uniform(*STACKING.get(self.task, (0.0, 0.0)))
        noise = random.uniform(0, NOISE) * MULTIPLES
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(seen, info)
        rows: list[dict[str, Any]] = []
        for row in range(self.rows):
            if self.kind == "noisy" and random.random() < RANDOM_SHARE[robot]:
                action = random.uniform(-1, 1, len(MULTIPLES))
            else:
                action = np.array(oracle.select_action(seen, info))
                action = action + (noise * random.normal(size=len(MULTIPLES)) if self.kind == "noisy" else 0)
            action = action.clip(-1, 1)
            following, _, _, _, info = env.step(action)
            rows.append({"observations": seen, "actions": action, "terminals": row == self.rows - 1})
            rows[-1] |= {key: info[f"prev_{key}"] for key in ("qpos", "qvel")}
            if "prev_button_states" in info:
                rows[-1]["button_states"] = info["prev_button_states"]
            if oracle.done:
                target_seen, target = env.unwrapped.set_new_target(p_stack=stacking)  # type: ignore[attr-defined]
                oracle = oracles[target["privileged/target_task"]]
                oracle.reset(target_seen, target)
            seen = following
        types = {"terminals": bool, "button_states": np.int64}
        return {key: np.array([row[key] for row in rows], types.get(key, np.float32)) for key in rows[0]}


def in_sight(places: np.ndarray) -> bool:
    """Whether scene's cube, at places (T, 3), is always before the camera or in the drawer, as OGBench asks for."""
    _, y, z = places.T
    return not ((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any()


@cache
def _environment(task: str, rows: int) -> gymnasium.Env:
    """The environment in which data are collected; one in each process."""
    import_package()
    return gymnasium.make(
        f"{task}-v0",
        terminate_at_goal=False,
        mode="data_collection",
        max_episode_steps=rows,
        disable_env_checker=True,
    )


def _oracles(env: gymnasium.Env, robot: str, kind: str) -> dict[str, Any]:
    """Return the package's oracles by the targets that they reach."""
    module, options = ("plan", PLANS) if kind == "play" else ("markov", {"min_norm": MIN_NORM})
    targets = {"cube": ("cube",), "puzzle": ("button",), "scene": ("cube", "button", "drawer", "window")}[robot]
    found = {}
    for target in targets:
        file = importlib.import_module(f"ogbench.manipspace.oracles.{module}.{target}_{module}")
        more = {"gripper_always_closed": True} if robot == "puzzle" else {}
        found[target] = getattr(file, f"{target.title()}{module.title()}Oracle")(env=env, **options, **more)
    return found


def _write_episode(dataset: ManipulationData, seed: int, number: int, file: Path) -> None:
    with replacing(file) as handle:
        np.savez(handle, allow_pickle=False, **dataset.episode(seed, number))  # type: ignore[arg-type]


def _joined(files: list[Path]) -> dict[str, np.ndarray]:
    parts = [dict(np.load(file, allow_pickle=False)) for file in files]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


MAKERS = {f"ogbench/{task}-{kind}-v0": ManipulationData(task, kind) for task in EPISODES for kind in KINDS}
