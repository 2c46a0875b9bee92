"""New goals at run time, without training again: python -m experiments.goals PIPELINE

A pipeline that was trained on logged episodes of halfcheetah gets three goals: run at 2 m/s, run backwards, keep the
body low while running. Each goal is a Python function of planned observations and actions. It ranks the candidates;
in a second run its gradient also moves the plans. Writes docs/goals.md. About 10 minutes on one core.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import describe, load_pipeline, make_environments
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Objective

FIRST_SEED = 6000
HEIGHT, SPEED = 0, 8  # columns of halfcheetah's observations: m above the usual stance, m/s forwards


def at_two(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Minus the distance from 2 m/s."""
    return -(observations[..., SPEED] - 2.0).abs()


def backwards(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return -observations[..., SPEED]


def low(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Speed up to 2 m/s, minus a penalty for a body higher than 5 cm below the usual stance."""
    return observations[..., SPEED].clamp(max=2.0) - 50 * (observations[..., HEIGHT] + 0.05).clamp(min=0)


GOALS: dict[str, tuple[Objective | None, str]] = {
    "as trained": (None, ""),
    "run at 2 m/s": (at_two, "-abs(v - 2)"),
    "run backwards": (backwards, "-v"),
    "keep low": (low, "min(v, 2) - 50 max(z + 0.05, 0)"),
}
SCALES = (0.0, 0.1)  # objective_scale
# With a goal the candidates must differ: their targets run from the worst returns of the data to the best, and all
# noise is drawn. The planner follows its own target, so the dynamics model draws the states given the planned actions.
SAMPLER: dict[str, Any] = {
    "candidates": 16,
    "target": 0.5,
    "target_spread": 0.5,
    "temperature": 1.0,
    "composition": "sequential",
}


def make_controller(pipeline: MPDiffuserPipeline, objective: Objective | None, scale: float) -> Controller:
    """A controller with the pipeline's own settings, and with a goal those of SAMPLER."""
    config = pipeline.sampler_defaults
    if objective is not None:
        config = replace(config, **SAMPLER, objective_scale=scale)
    return Controller(pipeline, config, objective=objective)


def run(
    pipeline: MPDiffuserPipeline, objective: Objective | None, scale: float, episodes: int, steps: int
) -> dict[str, tuple[float, float]]:
    """Speed, height and distance from 2 m/s: mean over the second half of the steps, and its standard error over
    episodes."""
    controller = make_controller(pipeline, objective, scale)
    environments = make_environments(pipeline, episodes)
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

{written_by}.

The pipeline was trained once, on {task}.
Each goal is a Python function of planned observations and actions (`experiments/goals.py`), handed to the
`Controller`. {episodes} episodes of {steps} steps, seeds from {first} up; mean ± standard error over episodes, of the
second half of the steps. With a goal: {candidates} candidates with targets over the whole range of the data's returns,
temperature 1, {levels} levels of {solver}, the states drawn by the dynamics model given the planned actions
(sequential).

"""
COLUMNS = ("goal", "reward of a step", "objective_scale", "speed, m/s", "height, m", "distance from 2 m/s")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("pipeline", type=Path, help="of a halfcheetah task, written by train_state.py")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--page", type=Path, default=pages.DOCS / "goals.md")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipeline = load_pipeline(args.pipeline)
    info = pipeline.config["info"]
    if info["environment"].get("env_id") != "HalfCheetah-v4":
        raise InputError(f"{args.pipeline}: must be a pipeline of halfcheetah, found {info['task']!r}")
    head = HEAD.format(
        written_by=pages.written_by("goals"),
        task=describe(info),
        episodes=args.episodes,
        steps=args.steps,
        first=FIRST_SEED,
        candidates=SAMPLER["candidates"],
        levels=pipeline.sampler_defaults.steps,
        solver=pipeline.sampler_defaults.solver,
    )
    rows = []
    for name, (objective, formula) in GOALS.items():
        for scale in SCALES if objective is not None else (0.0,):
            found = run(pipeline, objective, scale, args.episodes, args.steps)
            rows.append([name, formula, f"{scale:g}", *(f"{mean:.2f} ± {error:.2f}" for mean, error in found.values())])
            print(pages.row(rows[-1]), end="", flush=True)
    args.page.write_text(head + pages.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
