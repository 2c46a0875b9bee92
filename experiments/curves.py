"""Score against training time on the D4RL files: python -m experiments.curves --help

Each point is a cell of `experiments.offline_table` with its own core-minutes. Points of one method are separate
trainings, since the learning rate decays over a training. The folder --cells keeps a file of cells for each number of
core-minutes, so a command that was cut off resumes, and more points can be added later. Writes docs/curves.md and
docs/curves.png. For example:

    python -m experiments.curves --data-dir ../shared/data
    python -m experiments.curves --data-dir ../shared/data --core-minutes 60 --methods mpdiffuser cloning
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import figures, pages
from experiments.figures import plt
from experiments.offline_table import (
    ORIGINS,
    TASKS,
    Cells,
    cell,
    cells_file,
    cells_option,
    check_cells,
    mean_and_error,
    origin,
    read_cells,
    score,
)
from mpdiffuser.files import write_whole
from mpdiffuser.methods import METHODS

CHOSEN = ("hopper-medium-replay-v2", "halfcheetah-medium-expert-v2", "halfcheetah-medium-v2")
COMPARED = ("planner", "mpdiffuser", "cloning", "td3_bc", "iql", "decision_diffuser", "diffusion_policy")
Curves = dict[float, Cells]  # by core-minutes


def read_curves(folder: Path) -> Curves:
    """All cells of a folder, by core-minutes, ascending."""
    minutes = sorted(float(file.stem) for file in folder.glob("*.json") if file.stem.replace(".", "", 1).isdecimal())
    return {each: read_cells(cells_file(folder, each)) for each in minutes}


def of_task(curves: Curves, task: str, method: str) -> dict[float, list[dict[str, Any]]]:
    """The cells of a method on a task, one for each training seed, by core-minutes; without empty ones."""
    found = {minutes: list(cells.get(task, {}).get(method, {}).values()) for minutes, cells in curves.items()}
    return {minutes: each for minutes, each in found.items() if each}


def cells_of(curves: Curves, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """All cells of some tasks."""
    found = [of_task(curves, task, method).values() for task in tasks for method in COMPARED]
    return [one for points in found for cells in points for one in cells]


HEAD = """# Score against training time

{written_by}

{label}Normalised score (100 = the suite's expert): mean ± standard error over episodes, in brackets the 95 % interval
of the interquartile mean; with several training seeds mean ± standard error over these. Columns: core-minutes of
training that were planned, all models of a method together; the figure has the measured ones. The points of a method
are separate trainings. Default settings of `train_state.py`; trials and ablations used hopper and halfcheetah files
alone. planner is mpdiffuser without the dynamics model, on the same weights, so its training takes 14 % less.
behaviour: mean of the data's own episodes.

![score against core-minutes](curves.png)

"""


def page(curves: Curves) -> str:
    """docs/curves.md: a table for each task."""
    text = HEAD.format(**origin("curves", cells_of(curves, tasks_of(curves))))
    for task in tasks_of(curves):
        points = {name: of_task(curves, task, name) for name in COMPARED}
        rows = [
            [name, *(score(each.get(m, [])) for m in curves), ORIGINS[name]] for name, each in points.items() if each
        ]
        columns = ["method", *(f"{minutes:g}" for minutes in curves), "settings from"]
        text += f"## {task}\n\nbehaviour: {behaviour(curves, task):.1f}\n\n{pages.table(columns, rows)}\n"
    return text.rstrip("\n") + "\n"


def tasks_of(curves: Curves) -> list[str]:
    """The tasks with more than one point; all tasks if there is none."""
    points = {task: sum(task in cells for cells in curves.values()) for task in TASKS}
    least = min(2, max(points.values()))
    return [task for task, count in points.items() if count >= least]


def behaviour(curves: Curves, task: str) -> float:
    """The score of the data's own episodes."""
    return float(cells_of(curves, [task])[0]["behaviour"])


def draw(curves: Curves, file: Path) -> None:
    """Write the figure: a panel for each task, a line for each method."""
    figures.use_small_style()
    tasks = tasks_of(curves)
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 3.2), squeeze=False)
    for task, panel in zip(tasks, axes[0]):
        for name in COMPARED:
            if points := of_task(curves, task, name):
                means, errors = zip(*map(mean_and_error, points.values()))
                times = [np.median([sum(one["core_minutes"].values()) for one in cells]) for cells in points.values()]
                method = METHODS[name]
                panel.errorbar(times, means, errors, label=method.label, color=method.color[0], marker="o", ms=3)
        panel.axhline(behaviour(curves, task), color="0.6", ls=":", label="behaviour")
        panel.set(title=task, xscale="log", xlabel="core-minutes")
        panel.set_xticks(list(curves), [f"{minutes:g}" for minutes in curves], minor=False)
        panel.minorticks_off()
    axes[0, 0].set_ylabel("normalised score")
    axes[0, -1].legend(fontsize=7)
    figures.save(figure, file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    parser.add_argument("--tasks", nargs="*", default=CHOSEN, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--methods", nargs="*", default=COMPARED, choices=COMPARED, metavar="METHOD")
    parser.add_argument(
        "--core-minutes", nargs="*", type=float, default=[6.0, 20.0], help="of training, for each method"
    )
    pages.run_options(parser, "curves", "train_state.py", [0])
    cells_option(parser)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = pages.training_options(args)
    for minutes in read_curves(args.cells):
        check_cells(cells_file(args.cells, minutes), minutes, options)
    for minutes in args.core_minutes:
        for seed in args.seeds:
            for task in args.tasks:
                for method in args.methods:
                    file = cells_file(args.cells, minutes)
                    found = cell(task, method, seed, minutes, args.folder, file, options)
                    print(f"{task:27} {method:18} {seed} {minutes:g} min {score([found])}", flush=True)
                    curves = read_curves(args.cells)
                    write_whole(args.page, page(curves))
                    draw(curves, args.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
