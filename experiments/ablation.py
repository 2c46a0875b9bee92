"""How each setting of the sampler changes the return in closed loop: python -m experiments.ablation --help

Takes trained pipelines, changes one setting of the sampler at a time, and controls the task with each. Measures return
and feasibility (squared distance of the simulator from the plan, one and four decisions ahead, in variances of the
data). Each result is a file under --folder, and is reused. Writes docs/ablation.md and docs/ablation.png. For example,
after train_vision.py and train_state.py:

    python -m experiments.ablation cartpole=results/cartpole_swingup-mixed/pipeline \
        hopper=results/hopper-medium-v2/pipeline

Pipelines of further training seeds are given as cartpole@1=...; the page compares the settings that all have.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.record import folder_fingerprint
from evaluation.statistics import standard_error, summary
from experiments import pages
from experiments.figures import plt, save
from experiments.measuring import closed_loop, describe, file_name, load_pipeline, measure_once
from mpdiffuser.controller import Controller
from mpdiffuser.sampler import SamplerConfig

LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 100)
FIRST_SEED = 4000  # of the episodes; no table of results uses them

# settings of all runs unless a run changes them; with one candidate the ranker has nothing to choose
BASE: dict[str, Any] = {
    "composition": "fused",
    "candidates": 1,
    "steps": 8,
    "grid": "logsnr",
    "solver": "dpmpp_2m",
    "guidance": 1.0,
    "temperature": 0.5,
    "dynamics_power": 0.5,
    "rank_temperature": 0.0,
    "target": 0.8,
    "engine": "openvino",
}
UNIFORM = {"grid": "uniform", "solver": "ddpm"}
SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "fused": {f"fused, {n}": {"steps": n} for n in LEVELS},
    "planner": {f"planner, {n}": {"composition": "planner", "steps": n} for n in LEVELS},
    "release": {
        f"release, {n}": {"composition": "release", "steps": n, **UNIFORM} for n in LEVELS if n not in (8, 6, 2)
    },
    "sequential": {
        f"sequential, {n}": {"composition": "sequential", "steps": n} for n in LEVELS if n not in (100, 50, 6, 4, 2)
    },
    "solver and grid": {
        "fused, ddpm, uniform, 100": {"steps": 100, **UNIFORM},
        "fused, ddpm, uniform, 10": {"steps": 10, **UNIFORM},
        "fused, ddim, uniform, 10": {"steps": 10, "grid": "uniform", "solver": "ddim"},
        "fused, 2M, uniform, 10": {"steps": 10, "grid": "uniform"},
        "fused, 2M, karras, 10": {"steps": 10, "grid": "karras"},
        "fused, 2M, quadratic, 10": {"steps": 10, "grid": "quadratic"},
        **{f"fused, 2M, {grid}, {n}": {"steps": n, "grid": grid} for grid in ("quadratic", "karras") for n in (4, 6)},
        **{f"fused, ddpm, uniform, {n}": {"steps": n, **UNIFORM} for n in (3, 5)},
        **{f"fused, ddim, logsnr, {n}": {"steps": n, "solver": "ddim"} for n in (3, 4, 5, 10, 20, 50, 100)},
    },
    "power of the dynamics model": {
        "joint (p = 0), 8": {"composition": "joint"},
        **{f"p = {p}, 8": {"dynamics_power": p} for p in (0.25, 1.0, 2.0)},
    },
    "guidance": {f"guidance {g}, 8": {"guidance": g} for g in (1.5, 2.0, 4.0)},
    "target": {f"target {q}, 8": {"target": q} for q in (0.5, 0.95)},
    "temperature": {f"temperature {t}, 8": {"temperature": t} for t in (0.01, 0.25, 1.0)},
    "candidates": {f"{n} candidates, ranked, 8": {"candidates": n} for n in (4, 16)}
    | {"16 candidates, temperature 1.0, ranked, 8": {"candidates": 16, "temperature": 1.0}}
    | {f"{n} candidates, ranked, ddim, 4": {"candidates": n, "steps": 4, "solver": "ddim"} for n in (4, 16)}
    | {
        f"{n} candidates, mean (t = {t}), ddim, 4": {
            "candidates": n,
            "steps": 4,
            "solver": "ddim",
            "rank_temperature": t,
        }
        for n, t in ((4, 1.0), (4, 100.0), (16, 100.0))
    },
    "warm start": {"2 of 4 levels from the last plan": {"steps": 4, "warm_start": 2}},
}
SETTINGS = {name: settings for sweep in SWEEPS.values() for name, settings in sweep.items()}


Results = dict[str, dict[str, dict[str, Any]]]  # metrics by pipeline and setting


def measure(folder: Path, name: str, episodes: int, results: Path) -> dict[str, Any]:
    """Metrics of one setting of a pipeline."""
    identity = {"pipeline": folder_fingerprint(folder), "settings": SETTINGS[name], "episodes": episodes}

    def run() -> dict[str, Any]:
        pipeline = load_pipeline(folder)
        controller = Controller(pipeline, SamplerConfig(**BASE | SETTINGS[name]))
        return closed_loop(controller, pipeline, range(FIRST_SEED, FIRST_SEED + episodes), name, probe_every=10)

    return measure_once(results / file_name(name), identity, run)


def figure(results: Results, file: Path) -> None:
    """Return and feasibility against the number of levels, one row for each task."""
    plot, axes = plt.subplots(len(results), 2, figsize=(10, 3.6 * len(results)), squeeze=False)
    for row, (task, found) in zip(axes, results.items()):
        for composition in ("planner", "fused", "sequential", "release"):
            done = [(int(name.split(", ")[1]), found[name]) for name in SWEEPS[composition] if name in found]
            if not done:
                continue
            levels = [n for n, _ in done]
            means, errors = zip(*((m["mean"], m["standard_error"]) for _, m in done))
            row[0].errorbar(levels, means, errors, marker="o", capsize=2, label=composition)
            row[1].plot(levels, [m["feasibility"]["1"]["mean"] for _, m in done], marker="o", label=composition)
        row[0].set(xscale="log", xlabel="noise levels", ylabel="return ± standard error", title=task)
        row[1].set(xscale="log", yscale="log", xlabel="noise levels", ylabel="error, 1 decision ahead", title=task)
        row[0].legend()
    save(plot, file)


HEAD = """# The sampler in closed loop

{written_by}.

{tasks}.

{episodes} episodes a setting, seeds from {first} up, one training seed where no more are named. Each setting is
{base},
except for what its name says; the number is the number of levels; 2M is DPM-Solver++ 2M. With one candidate the ranker
has nothing to choose; "ranked": the best score of several is executed; "mean (t = ...)": the mean of several, weighted
by score (`rank_temperature`).
Feasibility: squared distance of the simulator from the plan, one and four decisions ahead, in variances of the data.
Interval: 95 % interval of the interquartile mean (rliable).
Plan ms: one plan for one environment, other jobs beside it.

![return and feasibility against levels](ablation.png)

"""
COLUMNS = ("sweep", "setting", "return", "IQM, interval", "feasibility 1", "4", "plan ms")
SEED_COLUMNS = (
    "setting",
    "return, each seed",
    "mean ± standard error over seeds",
    "IQM of all episodes, interval",
    "feasibility 1, each seed",
)


def page(results: Results, episodes: int, names: dict[str, str]) -> str:
    """All settings in Markdown, one table for each task.

    Args:
        names: task and data of each pipeline.
    """
    text = HEAD.format(
        written_by=pages.written_by("ablation"),
        tasks="; ".join(f"{task}: {name}" for task, name in names.items()),
        episodes=episodes,
        first=FIRST_SEED,
        base=", ".join(f"{key} {value}" for key, value in BASE.items()),
    )
    for task, found in ((task, found) for task, found in results.items() if "@" not in task):
        rows = [cells(sweep, name, found[name]) for sweep, part in SWEEPS.items() for name in part if name in found]
        text += f"## {task}: {names[task]}\n\n{pages.table(COLUMNS, rows)}\n" + seeds(task, results)
    return text


def seeds(task: str, results: Results) -> str:
    """The settings that the pipelines of all training seeds of a task have, in Markdown; empty for a single seed."""
    runs = [found for name, found in results.items() if name.partition("@")[0] == task]
    if len(runs) == 1:
        return ""
    rows = []
    for name in (name for name in SETTINGS if all(name in found for found in runs)):
        each = [found[name] for found in runs]
        means = np.array([m["mean"] for m in each])
        pooled = summary(np.concatenate([m["returns"] for m in each]))
        returns = ", ".join(f"{m['mean']:.0f} ± {m['standard_error']:.0f}" for m in each)
        errors = ", ".join(f"{m['feasibility']['1']['mean']:.4f}" for m in each)
        rows.append((name, returns, f"{means.mean():.0f} ± {standard_error(means):.0f}", iqm(pooled), errors))
    return f"{len(runs)} training seeds, each its own models:\n\n{pages.table(SEED_COLUMNS, rows)}\n"


def cells(sweep: str, name: str, m: dict[str, Any]) -> list[str]:
    """A row of a task's table."""
    near, far = (m["feasibility"].get(k) for k in ("1", "4"))
    error = lambda e: f"{e['mean']:.4f} ± {e['standard_error']:.4f}" if e else ""  # noqa: E731
    returns = f"{m['mean']:.0f} ± {m['standard_error']:.0f}"
    return [sweep, name, returns, iqm(m), error(near), error(far), f"{m['plan_ms_single']['median']:.0f}"]


def iqm(m: dict[str, Any]) -> str:
    """Interquartile mean and its interval."""
    low, high = m["iqm_interval"]
    return f"{m['iqm']:.0f} [{low:.0f}, {high:.0f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("pipelines", nargs="+", help="name=folder of a trained pipeline")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=list(SWEEPS), help="all by default")
    parser.add_argument("--folder", type=Path, default=Path("results/ablation"), help="of the results")
    parser.add_argument("--docs", type=Path, default=pages.DOCS)
    parser.add_argument("--levels", type=int, default=100, help="leave out settings with more noise levels")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="of the sweeps; all by default")
    parser.add_argument("--only", nargs="*", help="pipelines to measure; the page shows all")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folders = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in args.pipelines)}
    for task in args.only if args.only is not None else folders:
        for sweep, name in [(part, name) for part in args.sweeps for name in SWEEPS[part]]:
            if SETTINGS[name].get("steps", 0) <= args.levels and name in args.settings:
                m = measure(folders[task], name, args.episodes, args.folder / task)
                print(f"{task:10} {pages.row(cells(sweep, name, m))}", end="", flush=True)
    results = {
        task: {
            name: measure(folder, name, args.episodes, args.folder / task)
            for name in SETTINGS
            if (args.folder / task / file_name(name)).exists()
        }
        for task, folder in folders.items()
    }
    names = {task: describe(load_pipeline(folder).config["info"]) for task, folder in folders.items()}
    figure({task: found for task, found in results.items() if "@" not in task}, args.docs / "ablation.png")
    (args.docs / "ablation.md").write_text(page(results, args.episodes, names))


if __name__ == "__main__":
    main()
