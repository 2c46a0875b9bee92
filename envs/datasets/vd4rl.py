"""V-D4RL's datasets (Lu et al. 2023), made again: python -m envs.datasets make vd4rl/walker_walk-medium_expert PATH

A dataset has 200 episodes of 500 decisions, each of two control steps. The agents are those of `python -m
envs.experts.train TASK --recipe vd4rl`, and act with sampled actions.

    random          actions uniform in [-1, 1]
    medium          the agent whose return is nearest to half of the expert's
    expert          the best agent
    medium_expert   100 episodes of each of the two
    medium_replay   the first 100,000 decisions of the training itself; the training's folder is needed

The files have V-D4RL's 64 px layout (`envs.datasets.readers.vd4rl`), one episode each. `about.json` names the agents
and their returns, what differs from the public data, and the checksum of each file.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs import experts, gl  # noqa: F401  before mujoco is imported
from envs.datasets.episode_files import make_files
from envs.datasets.readers.vd4rl import ABOUT
from envs.doctor import versions
from envs.experts import AGENTS, PolicyNetwork, task_options
from envs.experts.train import RECIPES
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError
from mpdiffuser.files import publish, read_json, release, replacing, write_whole, writing

KINDS = ("random", "medium_replay", "medium", "medium_expert", "expert")
SIZE = 64  # pixels a side
LENGTHS = ("decisions", "kept")  # settings of a training that its first rows do not depend on
DECISIVE = ("mujoco", "dm_control")  # packages whose version may change the data, beside numpy
DIFFERENCES = (
    "the agents are trained here, by stable-baselines3's SAC with V-D4RL's sizes, learning rate and batch",
    "the standard deviation of an agent's actions is bounded as in stable-baselines3",
    "the packages' versions: see versions",
)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # physics (T + 1, p), actions (T + 1, m), rewards (T + 1,)


@dataclass(frozen=True)
class VD4RL:
    """One of the datasets.

    Args:
        task: of VD4RL_TASKS. kind: of KINDS. episodes: their number.
        agents: folder of the agents, of `envs.experts.export.export_agents`.
    """

    task: str
    kind: str
    episodes: int = 200
    agents: Path = AGENTS

    def write(self, path: Path, seed: int, rendering: str = "fast", run: Path | None = None) -> None:
        """Write the files into a new folder, or go on where it was cut off.

        Args:
            path: the folder. The files lie in `path`.partial until all are there.
            seed: of the episodes. rendering: see `envs.rendering`.
            run: the folder of the agents' training, for medium_replay; default: runs/experts/TASK-vd4rl.

        Raises:
            InputError: if an agent or the training's rows are not there, or the partial folder holds another dataset.
        """
        if path.exists():
            raise InputError(f"{path}: exists already; choose another name or remove it")
        if run is not None and self.kind != "medium_replay":
            raise InputError(f"--run: is for medium_replay only, found {run}")
        run = run or Path("runs/experts") / f"{self.task}-vd4rl"
        replay = run if self.kind == "medium_replay" else None
        agents = {name: self._load(name) for name in self._agents()}
        about = {
            "dataset": f"vd4rl/{self.task}-{self.kind}",
            "seed": seed,
            "environment": self.environment(rendering),
            "agents": {name: agent.info for name, agent in agents.items()},
            "training": None if replay is None else self._training(replay),
            "differences": list(DIFFERENCES),
            "versions": {"numpy": np.__version__, **{name: versions()[name] for name in DECISIVE}},
        }
        unfinished = path.with_name(path.name + ".partial")
        with writing(path):
            names = [f"{self.task}-{self.kind}-{number:03d}-501.npz" for number in range(self.episodes)]
            write = partial(_write_episode, self, seed, rendering, replay)
            files = make_files(unfinished, about, names, write, path.name)
            about["checksums"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            write_whole(unfinished / ABOUT, json.dumps(about, indent=1))
            release(unfinished)
            (unfinished / ".lock").unlink(missing_ok=True)
            if path.exists():
                raise InputError(f"{path}: was made meanwhile; the dataset is in {unfinished}")
            publish(unfinished, path)

    def _training(self, run: Path) -> dict[str, Any]:
        """Facts of the training in a folder.

        Raises:
            InputError: unless it is a training of the task by V-D4RL's settings, with enough rows.
        """
        if not (run / experts.ABOUT).is_file():
            raise InputError(f"--run: {run} holds no training; python -m envs.experts.train {self.task} --recipe vd4rl")
        facts, repeat = read_json(run / experts.ABOUT), task_options(self.task)["action_repeat"]
        if (facts.get("task"), facts.get("action_repeat")) != (self.task, repeat):
            raise InputError(
                f"--run: {run} must be a training of {self.task} with action repeat {repeat}, found "
                f"{facts.get('task')} with {facts.get('action_repeat')}"
            )
        expected = asdict(RECIPES["vd4rl"][self.task])
        settings = facts.get("settings") or {}
        differ = [key for key, value in expected.items() if key not in LENGTHS and settings.get(key) != value]
        if differ:
            found = ", ".join(f"{key}={settings.get(key)}" for key in differ)
            raise InputError(f"--run: {run} must be a training by --recipe vd4rl, found other settings: {found}")
        _replayed(run, self.episodes - 1)
        return {name: facts.get(name) for name in ("task", "seed", "settings", "versions")}

    def environment(self, rendering: str) -> dict[str, Any]:
        """The record of the environment for `envs.make`."""
        options = task_options(self.task)
        return {
            "kind": "dm_control",
            "task": self.task,
            "action_repeat": options["action_repeat"],
            "size": SIZE,
            "camera": options["camera"],
            "rendering": rendering,
        }

    def agent(self, number: int) -> PolicyNetwork | None:
        """The agent that acts in an episode; None: random actions, or a replay."""
        names = self._agents()
        return self._load(names[number * len(names) // self.episodes]) if names else None

    def _agents(self) -> tuple[str, ...]:
        return {"medium": ("medium",), "expert": ("expert",), "medium_expert": ("medium", "expert")}.get(self.kind, ())

    def _load(self, name: str) -> PolicyNetwork:
        file = self.agents / self.task / f"{name}.safetensors"
        if not file.is_file():
            raise InputError(
                f"vd4rl/{self.task}-{self.kind}: there is no agent {name} ({file}); train it: "
                f"python -m envs.experts.train {self.task} --recipe vd4rl"
            )
        return PolicyNetwork.load(file)


def _replayed(run: Path, number: int) -> Rows:
    """One of the first episodes of a training, as `envs.experts.train` wrote them down.

    Raises:
        InputError: if the training has not come so far, or a file is damaged.
    """
    try:
        parts = [dict(np.load(file, allow_pickle=False)) for file in sorted(run.glob("*.npz"))]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise InputError(f"{run}: a file of its rows is damaged ({error}); train again") from error
    columns = {
        key: np.concatenate([*(part[key] for part in parts)]) if parts else np.zeros(0)
        for key in ("first", "physics", "action", "reward")
    }
    lengths = np.diff([*np.flatnonzero(columns["first"]), len(columns["first"])])
    whole = int((lengths == lengths[:1]).cumprod().sum())  # the last one may have been cut off
    if whole <= number:
        raise InputError(
            f"{run}: holds the first {whole} whole episodes of a training, needed are {number + 1}; go on with it: "
            "python -m envs.experts.train with --recipe vd4rl"
        )
    episode = np.cumsum(columns["first"]) == number + 1
    return columns["physics"][episode], columns["action"][episode], columns["reward"][episode]


def _act(env: DMControlEnv, agent: PolicyNetwork | None, random: np.random.Generator) -> Rows:
    """An episode of an agent; None: random actions. The first row has no action and no reward."""
    state, info = env.reset(seed=int(random.integers(2**31)))
    shape = env.action_space.shape or ()
    physics, actions, rewards = [info["physics"]], [np.zeros(shape, np.float32)], [0.0]
    done = False
    while not done:
        action = random.uniform(-1, 1, shape) if agent is None else agent.sample(state[None], random)[0]  # type: ignore[index]
        state, reward, terminated, truncated, info = env.step(action.astype(np.float32))
        done = terminated or truncated
        physics.append(info["physics"])
        actions.append(action.astype(np.float32))
        rewards.append(reward)
    return np.array(physics), np.array(actions), np.array(rewards)


def _write_episode(dataset: VD4RL, seed: int, rendering: str, replay: Path | None, number: int, file: Path) -> None:
    """Run or replay an episode, draw its frames, and write its file."""
    record = {key: value for key, value in dataset.environment(rendering).items() if key != "kind"}
    env = DMControlEnv(**record, observation="states")
    if replay is None:
        physics, actions, rewards = _act(env, dataset.agent(number), np.random.default_rng([seed, number]))
    else:
        physics, actions, rewards = _replayed(replay, number)
    frames = []
    for state in physics:
        env.set_physics(state)
        frames.append(env.render())
    env.close()
    rows = len(frames)
    arrays = {
        "image": np.array(frames),
        "action": actions.astype(np.float32),
        "reward": rewards.astype(np.float32),
        "discount": np.ones(rows, np.float32),
        "is_first": np.arange(rows) == 0,
        "is_last": np.arange(rows) == rows - 1,
        "is_terminal": np.zeros(rows, bool),
    }
    with replacing(file) as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
