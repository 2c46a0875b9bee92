"""New goals at run time, without training again: python -m experiments.goals --help

A planner learns from all logged episodes of a halfcheetah alike, and is told no target. At run time it gets goals that
no reward of the data names: run at 1, 2 or 3 m/s, keep low, run fast but never above 1.5 m/s. Each goal is a Python
function of planned observations and actions. It ranks the candidates, and its gradient moves the plans. The folder
keeps all results, so a command that was cut off resumes. Writes docs/goals.md. For example:

    python -m experiments.goals --data-dir ../shared/data
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

import train_state
from envs.robots import Robots, stacked
from evaluation.statistics import standard_error
from experiments import pages
from experiments.study import SAME, Row, Run, Study
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from mpdiffuser.plan import Objective

TASK = "dsrl/OfflineHalfCheetahVelocityGymnasium-v1"
FIRST_SEED = 6000
HEIGHT, SPEED = 0, 8  # columns of halfcheetah's observations: m above the usual stance, m/s forwards
LOW, FASTEST = -0.2, 1.5  # m above the usual stance, m/s


@dataclass(frozen=True)
class Goal:
    """A goal of the experiment.

    Args:
        reward: of a step, in words. objective: computes it.
        distance: observations (..., o) -> distance from the goal (...).
        unit: of the distance.
    """

    reward: str
    objective: Objective
    distance: Callable[[Any], Any]
    unit: str = "m/s"


def speed_goal(speed: float) -> Goal:
    """Run at a speed in m/s."""
    distance = lambda o: abs(o[..., SPEED] - speed)  # noqa: E731
    return Goal(f"-abs(v - {speed:g})", lambda observations, actions: -distance(observations), distance)


def low(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Speed up to 1 m/s, minus a penalty for the distance from the height `LOW`."""
    return observations[..., SPEED].clamp(max=1.0) - 20 * (observations[..., HEIGHT] - LOW).abs()


def limited(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Speed, minus a penalty for speed above `FASTEST`."""
    speed = observations[..., SPEED]
    return speed - 10 * (speed - FASTEST).clamp(min=0)


GOALS = {f"run at {speed} m/s": speed_goal(speed) for speed in (1, 2, 3)}
GOALS["keep low"] = Goal(f"min(v, 1) - 20 abs(z + {-LOW:g})", low, lambda o: abs(o[..., HEIGHT] - LOW), "m")
GOALS["fast, not above 1.5 m/s"] = Goal(
    f"v - 10 max(v - {FASTEST:g}, 0)", limited, lambda o: np.maximum(FASTEST - o[..., SPEED], 0)
)
# all windows are alike in the planner's training
EQUAL = ("advantage.temperature=1e6", "episode_advantage.temperature=1e6", "occupancy=0")
RUNS = {SAME: Run(), "hearing": Run(options=("dynamics.hears=true",))}
# the best candidate is executed; all noise is drawn, so that candidates differ
SAMPLER: dict[str, Any] = {"candidates": 16, "rank_temperature": 0.0, "temperature": 1.0, "guidance": 0.0, "steps": 6}
ROWS = {
    "planner only": Row(SAME, {"composition": "planner"}),
    "fused": Row(SAME, {"composition": "fused"}),
    "heard, p = 2": Row("hearing", {"composition": "heard", "dynamics_power": 2.0}),
}
SCALES = (0.0, 0.3)  # objective_scale


def demonstrations(cfg: DictConfig) -> Episodes:
    """The task's episodes, without their costs."""
    episodes = train_state.dataset(cfg)
    arrays = {key: array for key, array in episodes.arrays.items() if key != "costs"}
    info = {key: value for key, value in episodes.info.items() if key != "cost_limits"}
    return Episodes(arrays, episodes.offsets, info, episodes.path, episodes.numbers, episodes.record)


def make_study(seed: int, folder: Path, options: Sequence[str]) -> Study:
    """The study of a training seed."""
    chosen = [f"task={TASK}", f"seed={seed}", *EQUAL, *options]
    return Study(folder / f"goals-{seed}", train_state, chosen, demonstrations, {}, RUNS, ROWS)


def measure(study: Study, row: str, goal: Goal, scale: float, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Of each episode: mean distance, share of steps above `FASTEST` and speed, over the second half of the steps."""
    policy = study.policy(row, **SAMPLER, objective_scale=scale)
    assert isinstance(policy, Controller)
    policy.objective = goal.objective
    found = Robots(study.demonstrated.info["environment"], len(seeds)).run(policy, seeds, steps=steps)
    late = [stacked(one["observations"])[steps // 2 + 1 :] for one in found]
    measures = {"distance": goal.distance, "above": lambda o: o[..., SPEED] > FASTEST, "speed": lambda o: o[..., SPEED]}
    return {name: [float(np.mean(of(each))) for each in late] for name, of in measures.items()}


HEAD = """# New goals at run time

{written_by}

A goal here is a reward function that the controller gets (`objective=`, [Deploy](deploy.md#objectives)), not a state as
with `goals=true` ([Your own robot](own_data.md)). `fused`, `heard` and p: [Theory](theory.md#the-compositions).

The planner learns from all episodes of {task} (a stand-in, not
DSRL's data) alike, and is told no target. Each goal is a Python function of planned observations and actions
(`experiments/goals.py`), handed to the `Controller`. It ranks {candidates} candidates, of which the best is executed;
with an `objective_scale` above 0 its gradient moves the plans too. v is the speed in m/s, z the height of the body in m
above the usual stance. {levels} noise levels, {episodes} episodes of {steps} steps for each training seed ({seeds}),
seeds from {first} up; all rows have the same starts and the same planner noise.

Figures are of the second half of the steps: the mean distance from the goal of each training seed, then the difference
to the first row of the goal with its standard error over all episodes. In the last goal the distance is what the speed
lacks, and `above` is the share of steps above 1.5 m/s. What follows from it: [Deploy](deploy.md#objectives).

"""
COLUMNS = ("goal", "reward of a step", "objective_scale", "", "distance", "difference", "speed, m/s", "above")


def page(results: dict[tuple[str, float, str], list[dict[str, Any]]], **facts: Any) -> str:
    """docs/goals.md, from goal, objective_scale and row -> the result of each training seed."""
    rows: list[list[Any]] = []
    first: dict[str, np.ndarray] = {}
    for (name, scale, row), found in results.items():
        goal = GOALS[name]
        distances = np.concatenate([each["distance"] for each in found])
        apart = distances - first.setdefault(name, distances)
        mean = lambda key: np.mean([each[key] for each in found])  # noqa: B023, E731
        means = ", ".join(f"{np.mean(each['distance']):.2f}" for each in found)
        difference = f"{apart.mean():+.2f} ± {standard_error(apart):.2f}" if apart.any() else ""
        above = f"{100 * mean('above'):.0f} %" if goal.objective is limited else ""
        rows.append(
            [name, goal.reward, f"{scale:g}", row, f"{means} {goal.unit}", difference, f"{mean('speed'):.2f}", above]
        )
    head = HEAD.format(
        written_by=pages.written_by("goals"),
        task=TASK,
        candidates=SAMPLER["candidates"],
        levels=SAMPLER["steps"],
        **facts,
    )
    return head + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where DSRL's file lies; the suite's own folder by default")
    parser.add_argument("--goals", nargs="*", default=list(GOALS), choices=GOALS)
    parser.add_argument("--scales", nargs="*", type=float, default=list(SCALES), help="values of objective_scale")
    pages.run_options(parser, "goals", "train_state.py")
    parser.add_argument("--episodes", type=int, default=10, help="of a cell")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the episodes; settings need others")
    parser.add_argument("--steps", type=int, default=300, help="of an episode")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = pages.training_options(args)
    seeds = range(args.first_seed, args.first_seed + args.episodes)
    results: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        study = make_study(seed, args.folder, options)
        for name, goal in GOALS.items():
            for scale in args.scales if name in args.goals else ():
                for row, about in ROWS.items():
                    identity = {"seed": seed, "row": row, "goal": goal.reward, "scale": scale, "options": options}
                    identity |= {
                        "seeds": [*seeds],
                        "steps": args.steps,
                        "sampler": {**SAMPLER, **(about.sampler or {})},
                    }
                    measured = partial(measure, study, row, goal, scale, seeds, args.steps)
                    cell = f"{name} {scale:g} {args.first_seed}"
                    found = study.result(row, cell, identity, measured)
                    results.setdefault((name, scale, row), []).append(found)
                    print(f"{seed} | {name} | {scale:g} | {row}: {np.mean(found['distance']):.2f}", flush=True)
    facts = {"episodes": args.episodes, "steps": args.steps, "first": args.first_seed}
    write_whole(args.page, page(results, **facts, seeds=", ".join(map(str, args.seeds))))


if __name__ == "__main__":
    main()
