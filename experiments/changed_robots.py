"""Control of changed robots, before and after adapt.py: python -m experiments.changed_robots --help

A pipeline of the nominal robot controls robots with weaker or stronger joints, more weight, or a slippery floor. Each
changed robot plays: the pipeline's own actions with noise. adapt.py then adapts the pipeline to it. All rows have the
same starts and the same planner noise. The file --cells keeps all cells, so a command that was cut off resumes. Writes
docs/changed_robots.md. For example:

    python train_state.py task=d4rl/hopper-medium-expert-v2 seed=0 output_dir=results/hopper-0
    python -m experiments.changed_robots --runs results/hopper-0 results/hopper-1
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.datasets import find_offline_task
from envs.robots import Disturbance, Robots, stacked
from evaluation.adapt import adapt
from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import load_pipeline
from mpdiffuser.config import load
from mpdiffuser.controller import Controller
from mpdiffuser.files import read_json, write_whole
from mpdiffuser.pipeline import MPDiffuserPipeline

NOISE, PLAYED = 0.3, 250  # of the actions in play, and steps of an episode of it


def _gears(factor: float, other: float | None = None) -> Callable[[Any], None]:
    """Scale the joints' strength; `other` is the factor of every second joint."""

    def change(model: Any) -> None:
        model.actuator_gear[::2] *= factor
        model.actuator_gear[1::2] *= factor if other is None else other

    return change


def _heavier(model: Any) -> None:
    model.body_mass[1] *= 1.5  # the torso


def _slippery(model: Any) -> None:
    model.geom_friction[:, 0] *= 0.5


CHANGES: dict[str, Callable[[Any], None]] = {
    "nothing": lambda model: None,
    "joints x 0.7": _gears(0.7),
    "joints x 1.5": _gears(1.5),
    "joints x 0.7, 1.3": _gears(0.7, 1.3),
    "joints x 1.2, 1.6": _gears(1.2, 1.6),
    "torso x 1.5": _heavier,
    "friction x 0.5": _slippery,
}
ROWS = ("before", "dynamics only", "adapted")


def play(robots: Robots, pipeline: MPDiffuserPipeline, steps: int, file: Path) -> None:
    """Write at least `steps` steps of noisy control as an npz file."""
    controller, parts, played, first = Controller(pipeline), [], 0, 10_000
    while played < steps:
        seeds = range(first, first + len(robots.envs))
        parts += robots.run(controller, seeds, Disturbance(NOISE), PLAYED)
        played, first = sum(len(part["rewards"]) for part in parts), first + len(robots.envs)
    arrays: dict[str, Any] = {
        "observations": np.concatenate([stacked(part["observations"]) for part in parts]),
        "actions": np.concatenate([np.vstack([part["actions"], part["actions"][-1:]]) for part in parts]),
        "truncations": np.concatenate([np.arange(len(part["observations"])) == len(part["rewards"]) for part in parts]),
    }
    space = robots.envs[0].action_space
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays, action_low=space.low, action_high=space.high)


def measure(run: Path, change: str, steps: int, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Returns of all rows on one changed robot: {"ROW, COMPOSITION": returns}, and the map of the actions.

    Args:
        run: folder of a run of train_state.py.
        change: of `CHANGES`.
        steps: of play.
        seeds: of the evaluated episodes.
        folder: of play data and adapted pipelines.
    """
    nominal = load_pipeline(run / "pipeline")
    robots = Robots(nominal.config["info"]["environment"], len(seeds), change=CHANGES[change])
    name = f"{run.name}-{change.replace(' ', '_')}-{steps}"
    file = folder / f"{name}.npz"
    if not file.exists():
        play(robots, nominal, steps, file)
    options = [f"pipeline={run / 'pipeline'}", f"dataset={file}", f"output_dir={folder / name}"]
    adapted = MPDiffuserPipeline.from_pretrained(adapt(load("adapt", options)))
    dynamics_only = MPDiffuserPipeline.from_pretrained(run / "pipeline")
    dynamics_only.register_modules(dynamics=adapted.dynamics)
    found: dict[str, Any] = {"adaptation": adapted.config["info"]["adaptation"]}
    pipelines = {"before": nominal, "dynamics only": dynamics_only, "adapted": adapted}
    for row, pipeline in pipelines.items():
        for composition in ("planner", "fused"):
            if (row, composition) == ("dynamics only", "planner"):
                continue  # the planner is the nominal one
            config = replace(pipeline.sampler_defaults, composition=composition)
            episodes = robots.run(Controller(pipeline, config), seeds)
            found[f"{row}, {composition}"] = [float(episode["rewards"].sum()) for episode in episodes]
    return found


HEAD = """# Changed robots

{written_by}

Normalised returns (100 is D4RL's expert), mean over episodes, and differences to the first column with the standard
error of the difference; all columns have the same starts and the same planner noise. The pipelines are trained on
**stand-ins** for D4RL's medium-expert files. `adapted` is `adapt.py` after so many steps of play of the changed robot,
which are the pipeline's own actions with noise of standard deviation {noise}. `dynamics only` has the dynamics model
that was trained further, and the actions as they were. Episodes: {episodes} a cell. How adapting works:
[More data, changed robots](adapt.md).

"""


def page(cells: dict[str, dict[str, Any]]) -> str:
    """docs/changed_robots.md: a row for each run, change and number of steps of play."""
    columns = ["before, planner", "before, fused", "dynamics only, fused", "adapted, planner", "adapted, fused"]
    rows, count = [], 0
    for key, found in cells.items():
        run, change, steps = key.split("|")
        task = find_offline_task(found["task"], "d4rl")
        scores = {name: np.array([task.score(value) for value in found[name]], float) for name in columns}
        first, count = scores[columns[0]], len(scores[columns[0]])
        rest = (
            f"{(each - first).mean():+.1f} ± {standard_error(each - first):.1f}" for each in list(scores.values())[1:]
        )
        rows.append([run, change, steps, f"{first.mean():.1f}", *rest, found["adaptation"]["form"]])
    head = HEAD.format(written_by=pages.written_by("changed_robots --runs RUN RUN"), noise=NOISE, episodes=count)
    return head + pages.table(["run", "change", "steps of play", *columns, "form"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of train_state.py")
    parser.add_argument("--changes", nargs="*", default=list(CHANGES), choices=CHANGES)
    parser.add_argument("--steps", nargs="*", type=int, default=[2_000, 10_000], help="of play")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("results/changed_robots"), help="of the adapted pipelines")
    parser.add_argument("--cells", type=Path, default=Path("results/changed_robots.json"))
    parser.add_argument("--page", type=Path, default=pages.DOCS / "changed_robots.md")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cells = read_json(args.cells) if args.cells.exists() else {}
    for change in args.changes:
        for run in args.runs:
            for steps in args.steps:
                key = f"{run.name}|{change}|{steps}"
                if key not in cells:
                    found = measure(run, change, steps, range(1000, 1000 + args.episodes), args.folder)
                    task = load_pipeline(run / "pipeline").config["info"]["task"]
                    cells[key] = found | {"task": task}
                    args.cells.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(args.cells, json.dumps(cells, indent=1))
                means = {name: round(float(np.mean(v)), 1) for name, v in cells[key].items() if isinstance(v, list)}
                print(key, cells[key]["adaptation"]["form"], means, flush=True)
    write_whole(args.page, page(cells))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
