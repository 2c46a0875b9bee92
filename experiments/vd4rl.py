"""V-D4RL's walker and cheetah, with data made again: python -m experiments.vd4rl --help

Makes each dataset (`python -m envs.datasets make vd4rl/...`), trains all methods from its frames alone, and evaluates
them in exactly these frames. The agents must be trained first: `python -m envs.experts.train walker_walk --recipe
vd4rl`, and cheetah_run. The folder keeps all runs, so a command that was cut off resumes. Writes docs/vd4rl.md.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.making import make_dataset
from envs.datasets.vd4rl import KINDS
from evaluation.statistics import standard_error
from experiments import end_to_end, pages
from experiments.measuring import measure_once, trained
from experiments.seven_tasks import minutes
from mpdiffuser.files import read_json, write_whole

TASKS = ("walker_walk", "cheetah_run")
METHODS = {
    "cloning": "cloning",
    "td3_bc": "TD3+BC",
    "diffusion_policy": "diffusion policy",
    "planner": "planner only",
    "mpdiffuser": "MPDiffuser",
}
END_TO_END = "end_to_end"
# the best published score of each set
PUBLISHED = {
    "walker_walk": dict(zip(KINDS, (28.7, 56.5, 52.5, 97.4, 91.5))),
    "cheetah_run": dict(zip(KINDS, (31.7, 61.6, 59.0, 62.7, 67.4))),
}


def dataset(task: str, kind: str, folder: Path) -> Path:
    """The folder of a dataset, which is made unless it is there."""
    data = folder / "data" / f"{task}-{kind}"
    if not data.exists():
        make_dataset(f"vd4rl/{task}-{kind}", data)
    return data


def measure(task: str, kind: str, seed: int, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Metrics of a run, and what is known of its dataset."""
    data, output = dataset(task, kind, folder), folder / f"{task}-{kind}-{seed}"
    chosen = [f"seed={seed}", f"evaluation.methods=[{','.join(METHODS)}]", *options]
    found = trained("train_vision.py", output, chosen, [f"dataset={data}", f"data_root={data.parent}"])
    return {**found, "about": read_json(data / "about.json")}


def measure_end_to_end(task: str, kind: str, seed: int, folder: Path, found: dict[str, Any], steps: int) -> None:
    """Add the metrics of the end-to-end policy to the result of `measure`."""
    name, data = f"{task}-{kind}-{seed}-{END_TO_END}", dataset(task, kind, folder)
    identity = {"data": read_json(data / "about.json")["checksums"], "seeds": found["seeds"], "steps": steps}
    measured = partial(end_to_end.measure, data, data.parent, seed, folder / name, found["seeds"], steps=steps)
    found["methods"][END_TO_END] = measure_once(folder / f"{name}.json", identity, measured)


HEAD = """# V-D4RL, made again

{written_by}

Data, camera, frames and action repeat as in V-D4RL ([Data](data.md#v-d4rl-made-again)), drawn with `rendering=fast`;
the agents are trained here, so the data are not V-D4RL's own. Trained from the frames and rewards alone, default
options of `train_vision.py`; all methods of a row have the same latents. Score: a tenth of the return. {episodes}
episodes in the frames of the data: mean ± standard error, for each training seed ({seeds}). End to end: TD3+BC whose
encoder is a small convolutional network, trained by the loss of Q on frames with random shifts, as DrQ+BC; trained on
some sets only. Published: the best score that a method reached on V-D4RL's own files. Minutes: core-minutes of all
training steps of all methods but the last, without validation and without the features of the frames.

"""
COLUMNS = ("dataset", "agents", *METHODS.values(), "end to end", "published", "minutes")


def cell(found: Sequence[dict[str, Any]], method: str) -> str:
    """Mean ± standard error of a method's scores for each training seed; empty if the method was not trained."""
    if any(method not in each["methods"] for each in found):
        return ""
    scores = [np.array(each["methods"][method]["returns"]) / 10 for each in found]
    return ", ".join(f"{each.mean():.1f} ± {standard_error(each):.1f}" for each in scores)


def page(results: dict[tuple[str, str], list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """docs/vd4rl.md, from task and kind -> the result of `measure` for each training seed."""
    rows = []
    for (task, kind), found in results.items():
        agents = found[0]["about"]["agents"].values()
        names = ", ".join(f"{agent['return_mean'] / 10:.1f}" for agent in agents)
        time = ", ".join(f"{minutes(each):.0f}" for each in found)
        cells = [cell(found, method) for method in (*METHODS, END_TO_END)]
        rows.append([f"{task}-{kind}", names, *cells, PUBLISHED[task][kind], time])
    episodes = len(next(iter(results.values()))[0]["seeds"])
    head = HEAD.format(written_by=pages.written_by("vd4rl"), episodes=episodes, seeds=", ".join(map(str, seeds)))
    return head + pages.table(COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--end-to-end", nargs="*", default=["medium_replay", "medium_expert"], choices=KINDS, help="its kinds of data"
    )
    parser.add_argument("--end-to-end-steps", type=int, default=end_to_end.TRAINING["steps"], help="of its training")
    pages.run_options(parser, "vd4rl", "train_vision.py", [0])
    args = parser.parse_args(arguments)
    for task, kind in product(args.tasks, args.kinds):  # first, since an agent may be missing
        dataset(task, kind, args.folder)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in args.tasks:
        for kind in args.kinds:
            found = results[task, kind] = [measure(task, kind, seed, args.folder, args.set) for seed in args.seeds]
            for seed, each in zip(args.seeds, found) if kind in args.end_to_end else ():
                measure_end_to_end(task, kind, seed, args.folder, each, args.end_to_end_steps)
            scores = {method: cell(found, method) for method in (*METHODS, END_TO_END)}
            print(task, kind, scores, flush=True)
            write_whole(args.page, page(results, args.seeds))


if __name__ == "__main__":
    main()
