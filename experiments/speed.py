"""Return against the time of an action: python -m experiments.speed --help

Measures the mean return of methods and settings in closed loop, and the milliseconds from an observation to an action
for one environment. Each result is a file under --folder, and is reused. Writes docs/speed.md and docs/speed.png. Run
nothing else meanwhile. For example, after

    accelerate launch train_vision.py "evaluation.methods=[planner,mpdiffuser,distilled,diffuser,diffusion_policy]"
    python -m experiments.speed --pipeline results/cartpole_swingup-mixed/pipeline
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluation.check import require_models
from evaluation.compare import policies, prepare, use_saved_settings
from evaluation.record import folder_fingerprint
from experiments import pages
from experiments.figures import plt, save
from experiments.measuring import closed_loop, describe, file_name, load_pipeline, measure_once
from mpdiffuser.config import load
from mpdiffuser.methods import METHODS

FIRST_SEED = 6000  # of the episodes; no table of results uses them
# a method, and options of evaluate.py; the baselines also at the levels that their papers use
Setting = tuple[str, tuple[str, ...]]
Results = dict[str, dict[str, dict[str, Any]]]  # metrics by family and setting


def count(number: int, noun: str) -> str:
    """ "1 level", "2 levels"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plans(method: str, sizes: Sequence[tuple[int, int]]) -> dict[str, Setting]:
    """Settings of a method with these numbers of levels and candidates."""
    return {
        f"{count(n, 'level')}, {count(c, 'candidate')}": (method, (f"sampler.steps={n}", f"sampler.candidates={c}"))
        for n, c in sizes
    }


FAMILIES: dict[str, dict[str, Setting]] = {
    "MPDiffuser": plans("mpdiffuser", ((1, 4), (2, 4), (4, 1), (4, 4), (4, 16), (4, 64), (8, 4), (20, 4), (100, 1))),
    "MPDiffuser, distilled": {
        count(c, "candidate"): ("distilled", (f"sampler.candidates={c}",)) for c in (1, 4, 16, 64)
    },
    "planner only": plans("planner", ((1, 4), (2, 4), (4, 1), (4, 4), (4, 16), (20, 4))),
    "Diffuser": {
        "20 levels, uniform": ("diffuser", ("baselines.diffuser.steps=20", "baselines.diffuser.grid=uniform")),
        "8 levels": ("diffuser", ("baselines.diffuser.steps=8",)),
    },
    "diffusion policy": {
        count(n, "level"): ("diffusion_policy", (f"baselines.diffusion_policy.steps={n}",)) for n in (8, 16, 100)
    },
}


def measure(folder: Path, setting: Setting, episodes: int, output: Path) -> dict[str, Any]:
    """Return and latency of one setting.

    Args:
        output: folder of the results.
    """
    method, options = setting
    require_models(method, folder)
    pipeline = load_pipeline(folder)
    cfg = load("evaluate", [f"pipeline={folder}", f"evaluation.methods=[{method}]", *options])
    use_saved_settings(cfg, pipeline)
    prepare(cfg, pipeline.config["info"]["environment"], output)
    _, name, setup = next(policies(cfg, pipeline, folder))
    policy = METHODS[name].policy(setup)
    return closed_loop(policy, pipeline, range(FIRST_SEED, FIRST_SEED + episodes), method)


def figure(found: Results, title: str, file: Path) -> None:
    plot, axis = plt.subplots(figsize=(8, 5))
    for family, settings in found.items():
        times = [m["action_ms_single"]["median"] for m in settings.values()]
        means, errors = zip(*((m["mean"], m["standard_error"]) for m in settings.values()))
        axis.errorbar(times, means, errors, fmt="o", capsize=2, label=family)
    axis.axvline(20, color="gray", linestyle=":", label="50 Hz")
    axis.set(xscale="log", xlabel="milliseconds from a frame to an action, one robot", ylabel="return", title=title)
    axis.legend()
    save(plot, file)


HEAD = """# Return against time

{written_by}, one thread.

{task}. {episodes} episodes a setting, seeds from {first} up, one training seed. Milliseconds: wall time from an
observation to the action of a new plan, for one environment, without the simulator (`action_ms_single` of
evaluate.py).

![return against milliseconds](speed.png)

"""
COLUMNS = ("method", "setting", "return", "median ms", "p95", "engine")


def page(found: Results, task: str, episodes: int) -> str:
    """docs/speed.md"""
    rows = [
        (
            family,
            name,
            f"{m['mean']:.0f} ± {m['standard_error']:.0f}",
            f"{m['action_ms_single']['median']:.1f}",
            f"{m['action_ms_single']['p95']:.1f}",
            m["engine"],
        )
        for family, settings in found.items()
        for name, m in settings.items()
    ]
    head = HEAD.format(
        written_by=pages.written_by("speed --pipeline results/cartpole_swingup-mixed/pipeline", "cores"),
        task=task,
        episodes=episodes,
        first=FIRST_SEED,
    )
    return head + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--folder", type=Path, default=Path("results/speed"), help="of the results")
    parser.add_argument("--docs", type=Path, default=pages.DOCS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fingerprint = folder_fingerprint(args.pipeline)
    found: Results = {}
    for family in args.families:
        for name, setting in FAMILIES[family].items():
            identity = {"pipeline": fingerprint, "setting": [setting[0], list(setting[1])], "episodes": args.episodes}
            run = partial(measure, args.pipeline, setting, args.episodes, args.folder)
            m = measure_once(args.folder / file_name(f"{family}-{name}"), identity, run)
            found.setdefault(family, {})[name] = m
            print(f"{family:24} {name:28} {m['mean']:8.1f} {m['action_ms_single']['median']:8.2f} ms", flush=True)
    task = describe(load_pipeline(args.pipeline).config["info"])
    figure(found, task, args.docs / "speed.png")
    (args.docs / "speed.md").write_text(page(found, task, args.episodes))


if __name__ == "__main__":
    main()
