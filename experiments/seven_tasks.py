"""Seven tasks of dm_control from an expert's data, from pixels and from true states: python -m experiments.seven_tasks

Runs train_vision.py and train_state.py for each task, with the default options of train_vision.py. The folder keeps all
runs, so a command that was cut off resumes. Writes docs/seven_tasks.md, and for each task a picture of the film: what
planner only and MPDiffuser imagine at one moment, and what really came.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import trained
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole

EPISODES = {
    "cartpole_swingup": 100,
    "pendulum_swingup": 100,
    "reacher_easy": 200,
    "point_mass_easy": 200,
    "ball_in_cup_catch": 100,
    "walker_walk": 100,
    "cheetah_run": 100,
}
METHODS = {"pixels": ("cloning", "planner", "mpdiffuser", "expert"), "states": ("cloning", "planner", "mpdiffuser")}
# train_vision.py's, since random actions replace single ones of the expert: a one-step advantage tells them
ADVANTAGE = ("advantage.gae_lambda=0", "advantage.bound=4")
MOMENT = 0.05  # of the film, in shares of its length: later nothing moves in the small tasks


def run(task: str, kind: str, seed: int, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate on a task, from "pixels" or "states", unless it is done, and return its metrics.

    Raises:
        InputError: from states, unless the folder has the dataset of the run from pixels; or as `trained`.
    """
    data_root, output = folder / "data", folder / f"{task}-{kind}-{seed}"
    chosen = [f"seed={seed}", f"evaluation.methods=[{','.join(METHODS[kind])}]", *options]
    if kind == "pixels":
        chosen += [f"task={task}", "quality=expert", f"episodes={EPISODES[task]}"]
        return trained("train_vision.py", output, chosen, [f"data_root={data_root}"])
    return trained("train_state.py", output, [*ADVANTAGE, *chosen], [f"dataset={collected(task, data_root)}"])


def collected(task: str, data_root: Path) -> Path:
    """The dataset that the run from pixels collected.

    Raises:
        InputError: unless there is exactly one.
    """
    pattern = f"{task}-expert-ar*-{EPISODES[task]}ep-seed0"
    found = list(data_root.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{data_root}: must have one dataset {pattern}, found {len(found)}; --set must not change it")
    return found[0]


def picture(video: Path, file: Path) -> None:
    """Write one moment of a film as a picture."""
    reader: Any
    with imageio.get_reader(video) as reader:
        frames = reader.count_frames()
        imageio.imwrite(file, reader.get_data(int(MOMENT * frames)))


HEAD = """# Seven tasks from an expert's data

{written_by}

`python train_vision.py task=TASK quality=expert episodes=N`, and `train_state.py` on the true states of the same
dataset, with the same options. A quarter of the data's episodes is undisturbed; in the others random actions replace
the expert's at some decisions. Returns of {episodes} episodes: mean ± standard error of each training seed ({seeds}),
and in brackets the share of the expert's return. Minutes: core-minutes of all training steps from pixels, without
validation and without the features of the frames.

"""
SHOWN = ("cloning", "planner only", "MPDiffuser")
COLUMNS = ("task", "N", "expert", *(f"{kind}: {name}" for kind in METHODS for name in SHOWN), "minutes")


def cell(found: Sequence[dict[str, Any]], method: str, expert: float | None = None) -> str:
    """Mean ± standard error of a method's returns for each training seed, and the share of the expert's."""
    returns = [np.array(each["methods"][method]["returns"]) for each in found]
    means = ", ".join(f"{each.mean():.0f} ± {standard_error(each):.0f}" for each in returns)
    return means if expert is None else f"{means} ({100 * np.mean(returns) / expert:.0f} %)"


def minutes(metrics: dict[str, Any]) -> float:
    """Core-minutes of the training of all models."""
    return sum(metrics["core_seconds"].values()) / 60


def page(results: dict[str, dict[str, list[dict[str, Any]]]], seeds: Sequence[int]) -> str:
    """docs/seven_tasks.md, from task and "pixels" or "states" -> the metrics of each training seed."""
    rows = []
    for task, kinds in results.items():
        expert = float(np.mean(kinds["pixels"][0]["methods"]["expert"]["returns"]))
        cells = [cell(kinds[kind], method, expert) for kind in kinds for method in METHODS["states"]]
        time = ", ".join(f"{minutes(each):.0f}" for each in kinds["pixels"])
        rows.append([task, EPISODES[task], f"{expert:.0f}", *cells, time])
    episodes = len(next(iter(results.values()))["pixels"][0]["seeds"])
    head = HEAD.format(written_by=pages.written_by("seven_tasks"), episodes=episodes, seeds=", ".join(map(str, seeds)))
    pictures = "".join(f"\n## {task}\n\n![{task}: plans and what came](seven_tasks-{task}.png)\n" for task in results)
    return head + pages.table(COLUMNS, rows) + pictures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(EPISODES), choices=EPISODES)
    pages.run_options(parser, "seven_tasks", "the training commands", [0])
    args = parser.parse_args(arguments)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in args.tasks:
        results[task] = {}
        for kind in METHODS:
            found = [run(task, kind, seed, args.folder, args.set) for seed in args.seeds]
            results[task][kind] = found
            print(task, kind, {method: cell(found, method) for method in METHODS[kind]}, flush=True)
        video = args.folder / f"{task}-pixels-{args.seeds[0]}" / "video.mp4"
        picture(video, args.page.with_name(f"seven_tasks-{task}.png"))
        write_whole(args.page, page(results, args.seeds))


if __name__ == "__main__":
    main()
