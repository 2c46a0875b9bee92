"""What each choice of the sampler is worth in closed loop: python -m experiments.ablation --help

Takes trained pipelines, changes one thing of the sampler at a time, and controls the task with each: return and
feasibility (squared distance of the simulator from the plan, one and four decisions ahead, in variances of the data).
Each setting is a file under --folder; what is there already is reused, so a run that was cut off goes on. Writes
docs/ablation.md and docs/ablation.png. For example, after train_vision.py and train_state.py:

    python -m experiments.ablation cartpole=results/cartpole_swingup-mixed/pipeline \
        hopper=results/hopper-medium-v2/pipeline

Pipelines of further training seeds are given as cartpole@1=...; the page compares what they were all measured with.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from mpdiffuser.record import folder_fingerprint
from mpdiffuser.statistics import standard_error, summary

import vision  # noqa: F401  the encoder classes that a pipeline folder may name
from experiments.measuring import closed_loop, kept, machine
from mpdiffuser.controller import Controller
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 100)
FIRST_SEED = 4000  # of the episodes; no table of results uses them

# what all settings share unless they say otherwise: one candidate, so that the ranker plays no part
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
    "who shapes the states": {
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
        f"{n} candidates, agreed (t = {t}), ddim, 4": {
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


@functools.cache
def loaded(folder: Path) -> MPDiffuserPipeline:
    return MPDiffuserPipeline.from_pretrained(folder)


def measure(folder: Path, name: str, episodes: int, results: Path) -> dict[str, Any]:
    """Metrics of one setting of a pipeline; from its file if it was measured already."""
    identity = {"pipeline": folder_fingerprint(folder), "settings": SETTINGS[name], "episodes": episodes}

    def run() -> dict[str, Any]:
        pipeline = loaded(folder)
        controller = Controller(pipeline, SamplerConfig(**BASE | SETTINGS[name]))
        seeds = range(FIRST_SEED, FIRST_SEED + episodes)
        return closed_loop(controller, pipeline.config["info"], seeds, name, probe_every=10)

    return kept(results / f"{file_name(name)}.json", identity, run, "--folder")


def figure(results: dict[str, dict[str, dict[str, Any]]], file: Path) -> None:
    """Return and feasibility against the number of levels, a row a task."""
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
    plot.tight_layout()
    plot.savefig(file, dpi=110)
    plt.close(plot)


HEAD = """# The sampler in closed loop

Written by `python -m experiments.ablation` on {date}, {cpu}, {cores} shared cores.

{tasks}.

{episodes} episodes a setting, seeds from {first} up, one training seed where no more are named. A setting is
{base},
but for what its name says, the number being the levels; 2M is DPM-Solver++ 2M. With one candidate the ranker plays no
part; "ranked": several are drawn and the best is taken; "agreed (t = ...)": the one that the others, weighted by rank,
agree with most (`rank_temperature`).
Feasibility: squared distance of the simulator from the plan, one and four decisions ahead, in variances of the data.
Interval: 95 % of the interquartile mean (rliable).
Plan ms: one plan for one environment, other jobs beside it: an indication.

![return and feasibility against levels](ablation.png)

"""


def page(results: dict[str, dict[str, dict[str, Any]]], episodes: int, names: dict[str, str]) -> str:
    """All settings as Markdown tables, a table a task."""
    tasks = "; ".join(f"{task}: {name}" for task, name in names.items())
    text = HEAD.format(
        **machine(),
        tasks=tasks,
        episodes=episodes,
        first=FIRST_SEED,
        base=", ".join(f"{key} {value}" for key, value in BASE.items()),
    )
    for task, found in ((task, found) for task, found in results.items() if "@" not in task):
        text += f"## {task}: {names[task]}\n\n"
        text += "| sweep | setting | return | IQM, interval | feasibility 1 | 4 | plan ms |\n" + "|---" * 7 + "|\n"
        text += "".join(
            row(sweep, name, found[name]) for sweep, settings in SWEEPS.items() for name in settings if name in found
        )
        text += "\n" + seeds(task, results)
    return text


def seeds(task: str, results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Settings that the pipelines of all training seeds of a task were measured with, as a Markdown table."""
    runs = [found for name, found in results.items() if name.partition("@")[0] == task]
    if len(runs) == 1:
        return ""
    text = f"{len(runs)} training seeds, each its own models:\n\n| setting | return, each seed | mean ± standard error "
    text += "over seeds | IQM of all episodes, interval | feasibility 1, each seed |\n|---|---|---|---|---|\n"
    for name in (name for name in SETTINGS if all(name in found for found in runs)):
        each = [found[name] for found in runs]
        means = np.array([m["mean"] for m in each])
        pooled = summary(np.concatenate([m["returns"] for m in each]))
        low, high = pooled["iqm_interval"]
        returns = ", ".join(f"{m['mean']:.0f} ± {m['standard_error']:.0f}" for m in each)
        errors = ", ".join(f"{m['feasibility']['1']['mean']:.4f}" for m in each)
        text += f"| {name} | {returns} | {means.mean():.0f} ± {standard_error(means):.0f} "
        text += f"| {pooled['iqm']:.0f} [{low:.0f}, {high:.0f}] | {errors} |\n"
    return text + "\n"


def row(sweep: str, name: str, m: dict[str, Any]) -> str:
    low, high = m["iqm_interval"]
    near, far = (m["feasibility"].get(k) for k in ("1", "4"))
    error = lambda e: f"{e['mean']:.4f} ± {e['standard_error']:.4f}" if e else ""  # noqa: E731
    return (
        f"| {sweep} | {name} | {m['mean']:.0f} ± {m['standard_error']:.0f} | {m['iqm']:.0f} [{low:.0f}, {high:.0f}] "
        f"| {error(near)} | {error(far)} | {m['plan_ms_single']['median']:.0f} |\n"
    )


def describe(folder: Path) -> str:
    """Task and data of a pipeline."""
    info = json.loads((folder / "model_index.json").read_text())["info"]
    source = (
        f"{info['file']}, a stand-in, not {info['suite']}'s data" if info.get("stand_in") else info.get("quality", "")
    )
    return f"{info['task']} ({source})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pipelines", nargs="+", help="name=folder of a trained pipeline")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=list(SWEEPS), help="all by default")
    parser.add_argument("--folder", type=Path, default=Path("results/ablation"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--levels", type=int, default=100, help="the most noise levels of a setting to be measured")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="of the sweeps; all by default")
    parser.add_argument("--only", nargs="*", help="of the pipelines, which to measure; the page shows all")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = [pipeline.partition("=") for pipeline in args.pipelines]
    folders = {name: Path(folder) for name, _, folder in pairs}
    for task in args.only if args.only is not None else folders:
        for name, setting in ((name, setting) for sweep in args.sweeps for name, setting in SWEEPS[sweep].items()):
            if setting.get("steps", 0) > args.levels or name not in args.settings:
                continue
            m = measure(folders[task], name, args.episodes, args.folder / task)
            print(f"{task:10} {row('', name, m)}", end="", flush=True)
    results = {
        task: {
            name: measure(folder, name, args.episodes, args.folder / task)
            for name in SETTINGS
            if (args.folder / task / f"{file_name(name)}.json").exists()
        }
        for task, folder in folders.items()
    }
    figure({task: found for task, found in results.items() if "@" not in task}, args.docs / "ablation.png")
    (args.docs / "ablation.md").write_text(page(results, args.episodes, {t: describe(f) for t, f in folders.items()}))


def file_name(name: str) -> str:
    return name.replace(" ", "_").replace(",", "").replace("=", "")


if __name__ == "__main__":
    main()
