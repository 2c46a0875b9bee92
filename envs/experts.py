"""Expert policies: small networks trained on the simulator, committed as safetensors, run in numpy.

`envs/policies/<task>/` holds `rung_1`, `rung_2`, ... (training checkpoints of rising return) and `expert`; each file is
remade by the command in its metadata (envs/train_expert.py).

    python -m envs.experts                    table of returns: random, rungs, expert
    python -m envs.experts --mppi 3           the same, with 3 episodes of MPPI
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpdiffuser.errors import InputError

FOLDER = Path(__file__).parent / "policies"
ACTION_REPEATS = {
    "cartpole_swingup": 4,
    "pendulum_swingup": 4,
    "reacher_easy": 4,
    "point_mass_easy": 4,
    "ball_in_cup_catch": 4,
    "walker_walk": 2,
    "cheetah_run": 2,
}
SEEDS = tuple(range(1_000, 1_020))  # of the published returns; training selects on other seeds


class Policy:
    """Deterministic policy: ReLU layers, then tanh.

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
            raise InputError(f"{path}: no policy here; make one with python -m envs.train_expert")
        try:
            with safe_open(path, framework="numpy") as file:
                info = json.loads((file.metadata() or {})["info"])
                count = len(list(file.keys())) // 2
                names = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(count)]
                return cls([(file.get_tensor(w), file.get_tensor(b)) for w, b in names], info)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a policy of ours, or damaged ({error}); make it again") from error


def tasks() -> list[str]:
    """Tasks that have committed policies."""
    return [task for task in ACTION_REPEATS if (FOLDER / task / "expert.safetensors").is_file()]


def names(task: str) -> list[str]:
    """Policies of a task by rising return: rung_1, ..., expert.

    Raises:
        InputError: if the task has no policies.
    """
    if task not in tasks():
        raise InputError(f"task={task!r} has no policies; allowed: {', '.join(tasks())}")
    rungs = [file.stem for file in (FOLDER / task).glob("rung_*.safetensors")]
    return [*sorted(rungs, key=lambda name: int(name.removeprefix("rung_"))), "expert"]


def load_policy(task: str, name: str = "expert") -> Policy:
    """A committed policy.

    Raises:
        InputError: if there is none of this task or name.
    """
    if name not in names(task):
        raise InputError(f"policy {name!r} of {task} does not exist; allowed: {', '.join(names(task))}")
    return Policy.load(FOLDER / task / f"{name}.safetensors")


def ladder(task: str) -> list[Policy | None]:
    """Policies of rising return: None (uniform random actions), rung_1, ..., expert."""
    return [None, *(load_policy(task, name) for name in names(task))]


def rollout_returns(
    task: str, action_repeat: int, policy: Callable[[np.ndarray], np.ndarray] | None, seeds: Sequence[int]
) -> np.ndarray:
    """Return of one episode a seed, (len(seeds),); policy None acts uniformly at random."""
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


def summary(returns: np.ndarray) -> str:
    """'mean ± standard error' of the returns of episodes."""
    return f"{returns.mean():.0f} ± {standard_error(returns):.0f}"


def standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def table_row(task: str, episodes: int, mppi: int) -> list[str]:
    """Cells of one task: task, random, rungs, expert, MPPI."""
    seeds = range(SEEDS[0], SEEDS[0] + episodes)
    cells = [summary(rollout_returns(task, ACTION_REPEATS[task], policy, seeds)) for policy in ladder(task)]
    row = [task, cells[0], ", ".join(cells[1:-1]), cells[-1]]
    if mppi:
        from envs.mppi import mppi_returns

        row.append(summary(mppi_returns(task, range(SEEDS[0], SEEDS[0] + mppi))))
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.experts", description=main_help)
    parser.add_argument("tasks", nargs="*", help=f"default: all of {', '.join(tasks())}")
    parser.add_argument("--episodes", type=int, default=len(SEEDS), help="a policy (default: %(default)s)")
    parser.add_argument("--mppi", type=int, default=0, help="episodes of MPPI a task (default: none)")
    options = parser.parse_args(arguments)
    head = ["task", "random", "rungs", "expert"] + (["MPPI"] if options.mppi else [])
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for task in options.tasks or tasks():
        print("| " + " | ".join(table_row(task, options.episodes, options.mppi)) + " |", flush=True)


main_help = "Mean return ± standard error of the committed policies, episodes from fixed seeds."

if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
