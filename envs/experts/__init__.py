"""Expert policies: small networks that see the true states, trained on the simulator and run in numpy.

`envs/experts/policies/<task>/` holds the ladder of a task as safetensors: `checkpoint_1`, `checkpoint_2`, ... (training
checkpoints of rising return) and `expert`. The metadata of each file have the command that makes it again
(envs/experts/train.py).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpdiffuser.errors import InputError

FOLDER = Path(__file__).parent / "policies"
SEEDS = tuple(range(1_000, 1_020))  # of the published returns; training chooses the policies on other seeds


class PolicyNetwork:
    """A deterministic policy: ReLU layers, then tanh.

    Args:
        layers: (weight (out, in), bias (out,)) of each layer, first to last.
        info: task, action_repeat, return_mean, return_sem, seeds, command, ...
    """

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray]], info: dict[str, Any]) -> None:
        self.layers = [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in layers]
        self.info = info

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Actions (B, m) in [-1, 1] for states (B, o)."""
        x = np.asarray(states, np.float32)
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        return np.tanh(x @ weight.T + bias)

    def save(self, path: str | Path) -> None:
        """Write weights and info to one safetensors file."""
        tensors = {}
        for index, (weight, bias) in enumerate(self.layers):
            tensors[f"layers.{index}.weight"] = np.ascontiguousarray(weight)
            tensors[f"layers.{index}.bias"] = np.ascontiguousarray(bias)
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
                count = len(list(file.keys())) // 2
                names = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(count)]
                return cls([(file.get_tensor(w), file.get_tensor(b)) for w, b in names], info)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: no policy of this project, or damaged ({error}); make it again") from error


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
