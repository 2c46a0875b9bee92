"""Choose policies among the checkpoints of a training: an expert with a ladder below it, or V-D4RL's two agents."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import sem

from envs.experts import SEEDS, PolicyNetwork, rollout_returns
from mpdiffuser.errors import InputError

SELECTION_SEEDS = tuple(range(20_000, 20_020))  # the expert is the best on these
LEVELS = (0.2, 0.4, 0.6, 0.8)  # returns of the exported checkpoints, as fractions of the expert's


def choose_expert(task: str, checkpoints: Sequence[PolicyNetwork], candidates: int = 4) -> PolicyNetwork:
    """The best on SELECTION_SEEDS among the checkpoints of highest return during training."""
    best = sorted(checkpoints, key=lambda policy: policy.info["watch_return"])[-candidates:]
    means = [rollout_returns(task, policy.info["action_repeat"], policy, SELECTION_SEEDS).mean() for policy in best]
    return best[int(np.argmax(means))]


def choose_levels(task: str, checkpoints: Sequence[PolicyNetwork], top: float) -> list[PolicyNetwork]:
    """Checkpoints of rising return, near the fractions LEVELS of `top`, their returns at least 0.08 `top` apart."""
    near: dict[int, PolicyNetwork] = {}
    for fraction in LEVELS:
        order = sorted(checkpoints, key=lambda policy: abs(policy.info["watch_return"] - fraction * top))
        near |= {policy.info["decisions"]: policy for policy in order[:3]}
    measured = [measure(task, policy) for policy in near.values()]
    chosen: list[PolicyNetwork] = []
    for fraction in LEVELS:
        nearest = min(measured, key=lambda policy: abs(policy.info["return_mean"] - fraction * top))
        below = chosen[-1].info["return_mean"] if chosen else 0.0
        if below + 0.08 * top < nearest.info["return_mean"] < 0.92 * top:
            chosen.append(nearest)
    return chosen


def measure(task: str, policy: PolicyNetwork, act: Callable[[np.ndarray], np.ndarray] | None = None) -> PolicyNetwork:
    """The policy, with its returns on SEEDS in its info; act computes its actions, and is the policy by default."""
    returns = rollout_returns(task, policy.info["action_repeat"], act or policy, SEEDS)
    policy.info.update(
        return_mean=float(returns.mean()),
        return_sem=float(sem(returns)),
        returns=returns.round(2).tolist(),
        episodes=len(SEEDS),
        seeds=list(SEEDS),
    )
    return policy


def load_checkpoints(folder: Path) -> list[PolicyNetwork]:
    """The checkpoints of a training.

    Raises:
        InputError: if there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no checkpoints; train first")
    return [PolicyNetwork.load(file) for file in files]


def export(task: str, folder: Path, target: Path) -> list[PolicyNetwork]:
    """Choose the expert and the levels below it among the checkpoints in `folder` and write them to `target`.

    Raises:
        InputError: if there are no checkpoints.
    """
    checkpoints = load_checkpoints(folder)
    expert = measure(task, choose_expert(task, checkpoints))
    levels = choose_levels(task, checkpoints, expert.info["return_mean"])
    files = {f"checkpoint_{level}.safetensors": policy for level, policy in enumerate(levels, 1)}
    files["expert.safetensors"] = expert
    for name, policy in files.items():
        policy.save(target / name)
    for old in target.glob("*.safetensors"):
        if old.name not in files:
            old.unlink()
    return [*levels, expert]


def export_agents(task: str, folder: Path, target: Path) -> list[PolicyNetwork]:
    """Choose V-D4RL's agents among the checkpoints in `folder` and write them to `target`.

    `expert` is the best checkpoint, `medium` the one whose return is nearest to half of the expert's. Their returns are
    those of sampled actions.

    Raises:
        InputError: if there are no checkpoints.
    """
    checkpoints = load_checkpoints(folder)
    expert = choose_expert(task, checkpoints)
    half = expert.info["watch_return"] / 2
    medium = min(checkpoints, key=lambda policy: abs(policy.info["watch_return"] - half))
    for name, policy in (("medium", medium), ("expert", expert)):
        random = np.random.default_rng(0)
        measure(task, policy, lambda states, policy=policy, random=random: policy.sample(states, random))  # type: ignore[misc]
        policy.save(target / f"{name}.safetensors")
    return [medium, expert]
