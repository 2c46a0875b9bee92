"""Return against the time of an action: python -m experiments.speed --help

Every method and setting as a point: its mean return in closed loop, and the milliseconds from an observation to an
action for one environment, timed on its own. Each setting is a file under --folder; what is there already is reused.
Writes docs/speed.md and docs/speed.png. Nothing else should run meanwhile. For example, after

    accelerate launch train_vision.py \
        "evaluation.methods=[random,cloning,diffuser,diffusion_policy,planner,ours,distilled,expert]"
    python -m experiments.speed --pipeline results/cartpole_swingup-mixed/pipeline
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from mpdiffuser.record import folder_fingerprint
from mpdiffuser.rivals import require_models

from evaluate import controllers, resolve_engines
from experiments.ablation import describe
from experiments.measuring import closed_loop, kept, machine
from mpdiffuser.config import load
from mpdiffuser.pipeline import MPDiffuserPipeline

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
FIRST_SEED = 6000  # of the episodes; no table of results uses them
# a method, and options of evaluate.py; the rivals also at the levels that their papers use
Setting = tuple[str, tuple[str, ...]]
OURS: dict[str, Setting] = {
    f"{n} levels, {c} candidates": ("ours", (f"sampler.steps={n}", f"sampler.candidates={c}"))
    for n, c in ((1, 4), (2, 4), (4, 1), (4, 4), (4, 16), (4, 64), (8, 4), (20, 4), (100, 1))
}
PLANNER: dict[str, Setting] = {
    f"{n} levels, {c} candidates": ("planner", (f"sampler.steps={n}", f"sampler.candidates={c}"))
    for n, c in ((1, 4), (2, 4), (4, 1), (4, 4), (4, 16), (20, 4))
}
STUDENT: dict[str, Setting] = {f"{c} candidates": ("distilled", (f"sampler.candidates={c}",)) for c in (1, 4, 16, 64)}
DIFFUSER: dict[str, Setting] = {
    "20 levels, uniform": ("diffuser", ("rivals.diffuser.steps=20", "rivals.diffuser.grid=uniform")),
    "8 levels": ("diffuser", ()),
}
POLICY: dict[str, Setting] = {
    f"{n} levels": ("diffusion_policy", (f"rivals.diffusion_policy.steps={n}",)) for n in (8, 16, 100)
}
FAMILIES = {
    "MPDiffuser": OURS,
    "MPDiffuser, distilled": STUDENT,
    "planner only": PLANNER,
    "Diffuser": DIFFUSER,
    "diffusion policy": POLICY,
}


def measure(folder: Path, setting: Setting, episodes: int) -> dict[str, Any]:
    """Return and latency of one setting."""
    method, options = setting
    require_models(method, folder)
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    cfg = load("evaluate", [f"pipeline={folder}", f"evaluation.methods=[{method}]", *options])
    resolve_engines(cfg)
    make = controllers(cfg, pipeline, folder)[method]
    return closed_loop(make(), pipeline.config["info"], range(FIRST_SEED, FIRST_SEED + episodes), method)


def figure(found: dict[str, dict[str, dict[str, Any]]], title: str, file: Path) -> None:
    plot, axis = plt.subplots(figsize=(8, 5))
    for family, settings in found.items():
        times = [m["action_ms_single"]["median"] for m in settings.values()]
        means, errors = zip(*((m["mean"], m["standard_error"]) for m in settings.values()))
        axis.errorbar(times, means, errors, fmt="o", capsize=2, label=family)
    axis.axvline(20, color="gray", linestyle=":", label="50 Hz")
    axis.set(xscale="log", xlabel="milliseconds from a frame to an action, one robot", ylabel="return", title=title)
    axis.legend()
    plot.tight_layout()
    plot.savefig(file, dpi=110)
    plt.close(plot)


HEAD = """# Return against time

Written by `python -m experiments.speed` on {date}, {cpu}, {cores} cores, one thread.

{task}. {episodes} episodes a setting, seeds from {first} up, one training seed. Milliseconds: wall time from an
observation to an action that a plan is drawn for, one environment, all but the simulator (`action_ms_single` of
evaluate.py).

![return against milliseconds](speed.png)

| method | setting | return | median ms | 95 % below | engine |
|---|---|---|---|---|---|
"""


def page(found: dict[str, dict[str, dict[str, Any]]], task: str, episodes: int) -> str:
    text = HEAD.format(
        **machine(),
        task=task,
        episodes=episodes,
        first=FIRST_SEED,
    )
    for family, settings in found.items():
        for name, m in settings.items():
            ms = m["action_ms_single"]
            text += f"| {family} | {name} | {m['mean']:.0f} ± {m['standard_error']:.0f} | {ms['median']:.1f} | "
            text += f"{ms['p95']:.1f} | {m['engine']} |\n"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--folder", type=Path, default=Path("results/speed"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fingerprint = folder_fingerprint(args.pipeline)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for family in args.families:
        for name, setting in FAMILIES[family].items():
            identity = {"pipeline": fingerprint, "setting": [setting[0], list(setting[1])], "episodes": args.episodes}
            file = args.folder / f"{family}-{name}.json".replace(" ", "_").replace(",", "")
            run = partial(measure, args.pipeline, setting, args.episodes)
            m = kept(file, identity, run, "--folder")
            found.setdefault(family, {})[name] = m
            print(f"{family:24} {name:28} {m['mean']:8.1f} {m['action_ms_single']['median']:8.2f} ms", flush=True)
    task = describe(args.pipeline)
    figure(found, task, args.docs / "speed.png")
    (args.docs / "speed.md").write_text(page(found, task, args.episodes))


if __name__ == "__main__":
    main()
