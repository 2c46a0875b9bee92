"""V-D4RL's walker and cheetah, with data made again: python -m experiments.vd4rl --help

Makes each dataset (`python -m envs.datasets make vd4rl/...`), trains all methods from its frames alone, and evaluates
them in exactly these frames. The agents must be trained first: `python -m envs.experts.train walker_walk --recipe
vd4rl`, and cheetah_run. The folder keeps all runs, so a command that was cut off resumes. Writes docs/vd4rl.md.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.making import make_dataset
from envs.datasets.vd4rl import KINDS
from evaluation.statistics import standard_error
from experiments import pages
from experiments.seven_tasks import ROOT, minutes
from mpdiffuser.files import read_json, write_whole

TASKS = ("walker_walk", "cheetah_run")
METHODS = {
    "cloning": "cloning",
    "td3_bc": "TD3+BC",
    "diffusion_policy": "diffusion policy",
    "planner": "planner only",
    "mpdiffuser": "MPDiffuser",
}
# the best published score of each set
PUBLISHED = {
    "walker_walk": dict(zip(KINDS, (28.7, 56.5, 52.5, 97.4, 91.5))),
    "cheetah_run": dict(zip(KINDS, (31.7, 61.6, 59.0, 62.7, 67.4))),
}


def measure(task: str, kind: str, seed: int, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Metrics of a run, and what is known of its dataset."""
    data, output = folder / "data" / f"{task}-{kind}", folder / f"{task}-{kind}-{seed}"
    if not data.exists():
        make_dataset(f"vd4rl/{task}-{kind}", data)
    if not (output / "metrics.json").exists():
        chosen = [f"dataset={data}", f"seed={seed}", f"output_dir={output}", "trackers=[]"]
        chosen += [f"evaluation.methods=[{','.join(METHODS)}]", *options]
        subprocess.run([sys.executable, str(ROOT / "train_vision.py"), *chosen], check=True)
    return {**read_json(output / "metrics.json"), "about": read_json(data / "about.json")}


HEAD = """# V-D4RL, made again

{written_by}

Data, camera, frames and action repeat as in V-D4RL ([Data](data.md#v-d4rl-made-again)), drawn with `rendering=fast`;
the agents are trained here, so the data are not V-D4RL's own. Trained from the frames and rewards alone, default
options of `train_vision.py`; all methods of a row have the same latents. Score: a tenth of the return. {episodes}
episodes in the frames of the data: mean ± standard error, for each training seed ({seeds}). Published: the best score
that a method reached on V-D4RL's own files. Minutes: of the training of all methods, on one of two shared cores.

"""
COLUMNS = ("dataset", "agents", *METHODS.values(), "published", "minutes")


def cell(found: Sequence[dict[str, Any]], method: str) -> str:
    """Mean ± standard error of a method's scores for each training seed."""
    scores = [np.array(each["methods"][method]["returns"]) / 10 for each in found]
    return ", ".join(f"{each.mean():.1f} ± {standard_error(each):.1f}" for each in scores)


def page(results: dict[tuple[str, str], list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """docs/vd4rl.md, from task and kind -> the result of `measure` for each training seed."""
    rows = []
    for (task, kind), found in results.items():
        agents = found[0]["about"]["agents"].values()
        names = ", ".join(f"{agent['return_mean'] / 10:.1f}" for agent in agents)
        time = ", ".join(f"{minutes(each):.0f}" for each in found)
        cells = [cell(found, method) for method in METHODS]
        rows.append([f"{task}-{kind}", names, *cells, PUBLISHED[task][kind], time])
    episodes = len(next(iter(results.values()))[0]["seeds"])
    head = HEAD.format(written_by=pages.written_by("vd4rl"), episodes=episodes, seeds=", ".join(map(str, seeds)))
    return head + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    pages.run_options(parser, "vd4rl", "train_vision.py", [0])
    args = parser.parse_args(arguments)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in args.tasks:
        for kind in args.kinds:
            results[task, kind] = [measure(task, kind, seed, args.folder, args.set) for seed in args.seeds]
            scores = {method: cell(results[task, kind], method) for method in METHODS}
            print(task, kind, scores, flush=True)
            write_whole(args.page, page(results, args.seeds))


if __name__ == "__main__":
    main()
