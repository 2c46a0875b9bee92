"""Expert policies: small networks that see the true states, trained on the simulator and run in numpy.

`envs/experts/policies/<task>/` holds the ladder of a task as safetensors: `checkpoint_1`, `checkpoint_2`, ... (training
checkpoints of rising return) and `expert`. The metadata of each file have the command that makes it again
(envs/experts/train.py).
"""

import importlib.resources
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpdiffuser.errors import InputError

FOLDER = Path(__file__).parent / "policies"
AGENTS = FOLDER / "vd4rl"  # <task>/medium and expert, whose actions can be sampled; see envs/datasets/vd4rl.py
ABOUT = "about.json"  # in the folder of a training: task, settings, seed
VD4RL_TASKS = ("walker_walk", "cheetah_run", "humanoid_walk", "quadruped_walk")
LOG_STD = (-20.0, 2.0)  # bounds that stable-baselines3 sets for SAC
Layer = tuple[np.ndarray, np.ndarray]
SEEDS = tuple(range(1_000, 1_020))  # of the published returns; training chooses the policies on other seeds


class PolicyNetwork:
    """A policy: ReLU layers, then tanh. With a further layer, its actions can also be sampled, as SAC does in training.

    Args:
        layers: (weight (out, in), bias (out,)) of each layer, first to last.
        info: task, action_repeat, return_mean, return_sem, seeds, command, ...
        log_std: (weight (m, in), bias (m,)) of the layer beside the last one, which gives the logarithm of the standard
            deviation before the tanh; None: there is none.
    """

    def __init__(self, layers: Sequence[Layer], info: dict[str, Any], log_std: Layer | None = None) -> None:
        self.layers = [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in layers]
        self.info = info
        self.log_std = log_std

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Mean actions (B, m) in [-1, 1] for states (B, o)."""
        return np.tanh(_apply(self.layers[-1], self._features(states)))

    def sample(self, states: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Sampled actions (B, m) in [-1, 1] for states (B, o).

        Raises:
            InputError: if the policy has no standard deviations.
        """
        if self.log_std is None:
            raise InputError(f"the policy of {self.info.get('task')} has mean actions only; they cannot be sampled")
        x = self._features(states)
        mean, std = _apply(self.layers[-1], x), np.exp(_apply(self.log_std, x).clip(*LOG_STD))
        return np.tanh(mean + std * random.standard_normal(mean.shape, np.float32))

    def _features(self, states: np.ndarray) -> np.ndarray:
        """The output (B, w) of the hidden layers."""
        x = np.asarray(states, np.float32)
        for layer in self.layers[:-1]:
            x = np.maximum(_apply(layer, x), 0)
        return x

    def save(self, path: str | Path) -> None:
        """Write weights and info to one safetensors file."""
        named = {f"layers.{index}": layer for index, layer in enumerate(self.layers)}
        named |= {} if self.log_std is None else {"log_std": self.log_std}
        tensors = {}
        for name, (weight, bias) in named.items():
            tensors[f"{name}.weight"] = np.ascontiguousarray(weight)
            tensors[f"{name}.bias"] = np.ascontiguousarray(bias)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"info": json.dumps(self.info)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by `save`.

        Raises:
            InputError: if the file is missing, damaged or not a policy.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no policy here; make one with python -m envs.experts.train")
        try:
            with safe_open(path, framework="numpy") as file:
                info = json.loads((file.metadata() or {})["info"])
                names = {key.rpartition(".")[0] for key in file.keys()}  # noqa: SIM118
                read = lambda name: (file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias"))  # noqa: E731
                layers = [read(f"layers.{i}") for i in range(len(names - {"log_std"}))]
                return cls(layers, info, read("log_std") if "log_std" in names else None)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: no policy of this project, or damaged ({error}); make it again") from error


def _apply(layer: Layer, x: np.ndarray) -> np.ndarray:
    return x @ layer[0].T + layer[1]


def task_options(task: str) -> dict[str, Any]:
    """action_repeat, size and camera of a task, from configs/task/."""
    file = importlib.resources.files("configs") / "task" / f"{task}.yaml"
    return yaml.safe_load(file.read_text())


def tasks() -> list[str]:
    """Tasks that have committed policies."""
    return sorted(file.parent.name for file in FOLDER.glob("*/expert.safetensors"))


def policy_names(task: str) -> list[str]:
    """Names of a task's policies by rising return: checkpoint_1, ..., expert.

    Raises:
        InputError: if the task has no policies.
    """
    if task not in tasks():
        raise InputError(f"task={task!r} has no policies; allowed: {', '.join(tasks())}")
    checkpoints = [file.stem for file in (FOLDER / task).glob("checkpoint_*.safetensors")]
    return [*sorted(checkpoints, key=lambda name: int(name.removeprefix("checkpoint_"))), "expert"]


def load_policy(task: str, name: str = "expert") -> PolicyNetwork:
    """A committed policy.

    Raises:
        InputError: if there is none of this task or name.
    """
    if name not in policy_names(task):
        raise InputError(f"policy {name!r} of {task} does not exist; allowed: {', '.join(policy_names(task))}")
    return PolicyNetwork.load(FOLDER / task / f"{name}.safetensors")


def ladder(task: str) -> list[PolicyNetwork | None]:
    """Policies of rising return, from level 0: None (uniform random actions), checkpoint_1, ..., expert."""
    return [None, *(load_policy(task, name) for name in policy_names(task))]


def rollout_returns(
    task: str, action_repeat: int, policy: Callable[[np.ndarray], np.ndarray] | None, seeds: Sequence[int]
) -> np.ndarray:
    """Return of one episode for each seed, (len(seeds),); policy None acts uniformly at random."""
    from envs.simulator import DMControlEnv

    env: Any = DMControlEnv(task, action_repeat=action_repeat)
    totals = np.zeros(len(seeds))
    for index, seed in enumerate(seeds):
        state, _ = env.reset(seed=int(seed))
        random = np.random.default_rng(seed)
        done = False
        while not done:
            action = random.uniform(-1, 1, env.action_space.shape) if policy is None else policy(state[None])[0]
            state, reward, terminated, truncated, _ = env.step(action)
            totals[index] += reward
            done = terminated or truncated
    env.close()
    return totals
