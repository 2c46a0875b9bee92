"""Planning in mazes: python -m experiments.mazes --help

A ball is to roll to a place: in D4RL's maze2d always the same, in OGBench's pointmaze one of five. The logged ball
rolled to random places. A plan has 32 rows, and as in Diffusion Veteran (Lu et al. 2025) a row for every 15 decisions.
Methods without goals learn from maze2d's rewards. The folder --results keeps all results, so a command that was cut
off resumes. Writes docs/mazes.md and docs/mazes.png. For example, after
`python -m envs.datasets make d4rl/maze2d-umaze-v1 data/maze2d-umaze-v1.hdf5` and so on:

    python -m experiments.mazes --data-dir data
    python -m experiments.mazes --data-dir data --tasks d4rl/maze2d-umaze-v1 --rows cloning IQL
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.maze2d import MAZES, OFFSET
from experiments import pages
from experiments.figures import plt, save
from experiments.measuring import file_name, load_pipeline, make_environments, measure_once
from experiments.offline_table import ORIGINS, check_data, measure, origin, score
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole

MAZE2D = tuple(f"d4rl/maze2d-{maze}-v1" for maze in MAZES)
POINTMAZE = tuple(f"ogbench/pointmaze-{maze}-navigate-v0" for maze in ("medium", "large"))
HORIZON = "horizon=32"
FAR = (HORIZON, "stride=15")
GOALS = ("goals=true", "goal_entries=[0,1]")
# of the training time; there is no ranker with goals
SHARES = {"planner": 0.8, "dynamics": 0.19, "forward": 0.01}
PUBLISHED = {  # task -> score; OGBench's is the best of the methods in its table
    "Diffuser": dict(zip(MAZE2D, (113.9, 121.5, 123.0))),
    "Diffusion Veteran": dict(zip(MAZE2D, (136.6, 150.7, 203.6))),
    "OGBench's best": dict(zip(POINTMAZE, (76.0, 46.0))),
}
SHOWN, EVERY = 4, 20  # episodes in the figure, and decisions between two of their plans


@dataclass(frozen=True)
class Row:
    """A method and its options; with goals it is told where to go, else it learns from the rewards."""

    method: str
    options: tuple[str, ...]

    @property
    def goals(self) -> bool:
        return set(GOALS) <= set(self.options)


ROWS = {
    "cloning": Row("cloning", ()),
    "IQL": Row("iql", ()),
    "Diffuser": Row("diffuser", FAR),
    "sample and rank": Row("sample_and_rank", (*FAR, "baselines.sample_and_rank.candidates=50")),
    "planner only, every decision": Row("planner", (HORIZON, *GOALS)),
    "planner only": Row("planner", (*FAR, *GOALS)),
    "MPDiffuser": Row("mpdiffuser", (*FAR, *GOALS)),
}
MADE = "**The data were made again (`envs.datasets make`): no number here is a D4RL or OGBench result.**\n\n"
Results = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]  # by row and task: one result for each training seed


def tasks_of(row: Row, tasks: Sequence[str]) -> list[str]:
    """The tasks that a row can learn: pointmaze has no rewards."""
    return [task for task in tasks if row.goals or task in MAZE2D]


def folder_of(folder: Path, row: Row) -> Path:
    """Where the models of a row are trained; rows with the same options share those of MPDiffuser."""
    return folder / (file_name(" ".join(row.options)).removesuffix(".json") if row.options else "rewards")


HEAD = """# Mazes

{written_by}

{label}A ball is to roll to a place. The logged ball rolled to random places, and seldom stayed. Normalised score: mean
± standard error over episodes, and in brackets the 95 % interval of the interquartile mean; for pointmaze the
percentage of goals that are reached. Each method was trained for {minutes:g} core-minutes, all its models together;
episodes from seed {first} on. A plan has 32 rows, one for every 15 decisions (`stride=15`), as in Diffusion Veteran; in
the row "every decision" one for each. No setting was chosen on mazes: trials and ablations used hopper and halfcheetah
files alone.

Planner only and MPDiffuser are told the goal, and learn from no reward (`goals=true "goal_entries=[0,1]"`). The others
learn from maze2d's rewards, which are 1 near its goal; pointmaze has none. "Sample and rank" is the recipe of Diffusion
Veteran in this code: a planner of states, inverse dynamics, and the best of 50 plans by a critic. The published scores
are of the public data, whole trainings, and for Diffuser of a controller that stops the ball at the goal. Empty
cells have not been measured, or there are no rewards to learn from.

"""


def page(results: Results, tasks: Sequence[str], minutes: float) -> str:
    """docs/mazes.md: a table with a row for each method."""
    every = [one for found in results.values() for some in found.values() for one in some]
    facts = origin("mazes --data-dir FOLDER", every) | {"minutes": minutes, "first": every[0]["seeds"][0]}
    head = HEAD.format(**facts | {"label": MADE if facts["label"] else ""})
    rows = []
    for name, found in results.items():
        rows.append([name, *(score(found.get(task, ())) for task in tasks), ORIGINS[ROWS[name].method]])
    for name, scores in PUBLISHED.items():
        rows.append([f"{name}, published", *(f"{scores[task]:.1f}" if task in scores else "" for task in tasks), ""])
    behaviour = {task: found[task][0]["behaviour"] for found in results.values() for task in found if task in MAZE2D}
    rows.append(["the data", *(f"{behaviour[task]:.1f}" if task in behaviour else "" for task in tasks), ""])
    picture = "![Plans and ways in the mazes](mazes.png)\n\nBlue: plans of MPDiffuser. Black: the way of the ball.\n\n"
    return f"{head}{pages.table(['method', *map(short, tasks), 'settings from'], rows)}\n{picture}"


def short(task: str) -> str:
    """The name of a column."""
    return task.partition("/")[2].rpartition("-v")[0]


def walk(pipeline_folder: Path, seeds: Sequence[int], decisions: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The places of the ball, (T + 1, B, 2), and its plans every `EVERY` decisions, each (B, H, 2)."""
    pipeline = load_pipeline(pipeline_folder)
    environments, policy = make_environments(pipeline, len(seeds)), Controller(pipeline)
    try:
        observations, infos = environments.reset(seed=list(seeds))
        policy.reset(list(seeds))
        policy.aim(infos["goal"])
        places, plans = [np.asarray(observations)[:, :2]], []
        for decision in range(decisions):
            actions = policy.act(observations)
            if decision % EVERY == 0:
                assert policy.plan is not None
                plans.append(policy.plan.executed_latents[..., :2].cpu().numpy())
            observations, *_ = environments.step(actions)
            places.append(np.asarray(observations)[:, :2])
    finally:
        environments.close()
    return np.array(places), plans


def draw(folders: Mapping[str, Path], file: Path, first_seed: int, decisions: int = 200) -> None:
    """Write a figure with a maze for each name of `MAZES`: its walls, plans, and the ways of the ball."""
    figure, axes = plt.subplots(1, len(folders), figsize=(4.2 * len(folders), 4.2), squeeze=False)
    for axis, (maze, folder) in zip(axes[0], folders.items()):
        for i, row in enumerate(MAZES[maze]):
            for j, kind in enumerate(row):
                color = {"#": "0.6", "G": "#f0c27b"}.get(kind, "white")
                axis.add_patch(plt.Rectangle((j - 0.5 - OFFSET, i - 0.5 - OFFSET), 1, 1, color=color))
        places, plans = walk(folder, range(first_seed, first_seed + SHOWN), decisions)
        for plan in plans:
            axis.plot(plan[..., 1].T, plan[..., 0].T, color="C0", alpha=0.25, linewidth=0.8)
        axis.plot(places[..., 1], places[..., 0], color="black", linewidth=1.4)
        axis.plot(places[0, :, 1], places[0, :, 0], "o", color="black", markersize=4)
        axis.set(title=maze, aspect="equal", xticks=[], yticks=[])
        axis.autoscale_view()
        axis.invert_yaxis()
    save(figure, file, rect=(0, 0, 1, 0.95))  # for the titles, which the aspect moves


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    every = [*MAZE2D, *POINTMAZE]
    parser.add_argument("--tasks", nargs="*", default=every, choices=every, metavar="TASK", help=", ".join(every))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--core-minutes", type=float, default=6.0, help="of training, for each method")
    parser.add_argument("--results", type=Path, default=pages.DOCS / "mazes", help="folder of the results")
    pages.run_options(parser, "mazes", "train_state.py", [0])
    args = parser.parse_args(arguments)
    if not any(tasks_of(ROWS[name], args.tasks) for name in args.rows):
        raise InputError(f"--rows: none of {', '.join(args.rows)} can learn --tasks, which have no rewards")
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    drawn: dict[str, Path] = {}
    for name, row in ROWS.items():
        options = [*pages.training_options(args), *row.options]
        shares, folder = SHARES if row.goals else None, folder_of(args.folder, row)
        identity = {"core_minutes": args.core_minutes, "row": list(row.options), "options": list(args.set)}
        for task in tasks_of(row, every):
            for seed in args.seeds:
                file = args.results / file_name(f"{short(task)} {name} {seed}")
                if not file.exists() and (name not in args.rows or task not in args.tasks):
                    continue  # the page has what was measured before too

                def measured() -> dict[str, Any]:
                    return measure(task, row.method, seed, args.core_minutes, folder, options, shares=shares)  # noqa: B023

                found = measure_once(file, identity, measured, "--results")
                check_data(found, task, options, file, "--results")
                results.setdefault(name, {}).setdefault(task, []).append(found)
                print(f"{short(task):26} {name:30} {seed} {score([found])}", flush=True)
                if name == "MPDiffuser" and task in MAZE2D:
                    run = folder / "runs" / f"{args.core_minutes:g}" / task / f"mpdiffuser-{args.seeds[0]}"
                    if (run / "pipeline").exists():
                        drawn[task.split("-")[1]] = run / "pipeline"
    tasks = [task for task in every if any(task in found for found in results.values())]
    write_whole(args.page, page(results, tasks, args.core_minutes))
    if drawn:
        draw(drawn, args.page.with_suffix(".png"), first_seed=1000)


if __name__ == "__main__":
    main()
