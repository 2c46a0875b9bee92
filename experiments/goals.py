"""New goals at run time, without training again: python -m experiments.goals PIPELINE

A halfcheetah that learned from logged episodes is asked to run at 2 m/s, to run backwards, and to keep its body low
while it runs: each a Python function of planned observations and actions, by which candidates are ranked, and in a
second run whose gradient also pulls at the plans. Writes docs/goals.md. About 10 minutes on one core.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpdiffuser.statistics import standard_error

import vision  # noqa: F401  the encoder classes that a pipeline folder may name
from envs.vector import VectorEnv
from experiments.measuring import machine
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline, Objective
from mpdiffuser.sampler import SamplerConfig

PAGE = Path(__file__).parent.parent / "docs" / "goals.md"
FIRST_SEED = 6000
HEIGHT, SPEED = 0, 8  # columns of halfcheetah's observations: m above the usual stance, m/s forwards


def at_two(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Minus the distance from 2 m/s."""
    return -(observations[..., SPEED] - 2.0).abs()


def backwards(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return -observations[..., SPEED]


def low(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Speed up to 2 m/s, and a forbidden region above 5 cm below the usual stance, where it can be avoided."""
    return observations[..., SPEED].clamp(max=2.0) - 50 * (observations[..., HEIGHT] + 0.05).clamp(min=0)


GOALS: dict[str, tuple[Objective | None, str]] = {
    "as trained": (None, ""),
    "run at 2 m/s": (at_two, "-abs(v - 2)"),
    "run backwards": (backwards, "-v"),
    "keep low": (low, "min(v, 2) - 50 max(z + 0.05, 0)"),
}
PULLS = (0.0, 0.1)
# candidates that differ: wishes from the worst outcomes of the data to the best, drawn with all their noise; and what
# the dynamics model says of the planned actions, as the planner has its own idea of what is wanted
SAMPLER: dict[str, Any] = {
    "candidates": 16,
    "target": 0.5,
    "target_spread": 0.5,
    "temperature": 1.0,
    "composition": "sequential",
}


def run(
    pipeline: MPDiffuserPipeline, objective: Objective | None, pull: float, episodes: int, steps: int
) -> dict[str, tuple[float, float]]:
    """Speed, height and distance from 2 m/s, mean over the second half of the steps, and its standard error over
    episodes."""
    more = SAMPLER | {"pull": pull, "engine": "openvino"} if objective is not None else {"engine": "openvino"}
    controller = Controller(pipeline, SamplerConfig(**more), objective=objective)
    environments = VectorEnv(episodes, **pipeline.config["info"]["environment"])
    seeds = list(range(FIRST_SEED, FIRST_SEED + episodes))
    seen: list[np.ndarray] = []
    try:
        observations: Any = environments.reset(seed=seeds)[0]
        controller.reset(seeds)
        for _ in range(steps):
            observations = environments.step(controller.act(observations))[0]
            seen.append(observations)
    finally:
        environments.close()
    late = np.stack(seen[steps // 2 :])  # (steps / 2, B, o)
    measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "speed": lambda o: o[..., SPEED],
        "height": lambda o: o[..., HEIGHT],
        "distance": lambda o: np.abs(o[..., SPEED] - 2),
    }
    means = {name: measure(late).mean(0) for name, measure in measures.items()}
    return {name: (float(each.mean()), standard_error(each)) for name, each in means.items()}


HEAD = """# New goals at run time

Written by `python -m experiments.goals` on {date}, {cpu}, {cores} shared cores.

The pipeline learned {task} ({source}) once; each goal is a Python function of planned
observations and actions (`experiments/goals.py`), handed to the `Controller`. {episodes} episodes of {steps} steps,
seeds from {first} up; mean ± standard error over episodes, of the second half. With a goal: {candidates} candidates
with targets over the whole range of the data's outcomes, temperature 1, {levels} levels, the states by the dynamics
model given the planned actions (sequential).

| goal | reward of a step | pull of the gradient | speed, m/s | height, m | distance from 2 m/s |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pipeline", type=Path, help="of a halfcheetah task, written by train_state.py")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = MPDiffuserPipeline.from_pretrained(args.pipeline)
    info = pipeline.config["info"]
    if info.get("environment", {}).get("env_id") != "HalfCheetah-v4":
        raise InputError(f"{args.pipeline}: must be a pipeline of halfcheetah, found {info.get('task')!r}")
    source = f"{info['file']}, a stand-in, not {info['suite']}'s data" if info["stand_in"] else info["file"]
    text = HEAD.format(
        **machine(),
        task=info["task"],
        source=source,
        episodes=args.episodes,
        steps=args.steps,
        first=FIRST_SEED,
        candidates=SAMPLER["candidates"],
        levels=SamplerConfig().steps,
    )
    for name, (objective, formula) in GOALS.items():
        for pull in PULLS if objective is not None else (0.0,):
            found = run(pipeline, objective, pull, args.episodes, args.steps)
            cells = " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in found.values())
            text += f"| {name} | {formula} | {pull:g} | {cells} |\n"
            print(text.splitlines()[-1], flush=True)
    args.page.write_text(text)


if __name__ == "__main__":
    main()
