"""All methods on the D4RL files, with the same training time: python -m experiments.offline_table --help

Each (task, method, training seed) is a cell. Its models are trained for the same core-minutes, divided as in SHARES;
the method then controls the task in gymnasium. The folder --cells has a file of cells for each number of core-minutes,
so a command that was cut off resumes, and parts of the table can be measured one after another. Writes docs/offline.md.
For example:

    python -m experiments.offline_table --data-dir ../shared/data
    python -m experiments.offline_table --data-dir ../shared/data --tasks hopper-medium-v2 \
        --methods mpdiffuser planner --seeds 1 2
"""

import argparse
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from evaluation.compare import compare, prepare
from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import check_identity, core_seconds, measure_once, stamped
from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json, write_whole
from mpdiffuser.launch import Clock, start
from train_state import dataset, train

QUALITIES = ("medium-expert", "medium", "medium-replay")
TASKS = [f"{robot}-{quality}-v2" for robot in ("hopper", "halfcheetah") for quality in QUALITIES]
# the share of a method's training time that each of its models gets
SHARES: dict[str, dict[str, float]] = {
    "cloning": {"cloning": 1.0},
    "iql": {"iql": 1.0},
    "td3_bc": {"td3_bc": 1.0},
    "rebrac": {"rebrac": 1.0},
    "diffusion_policy": {"action_planner": 1.0},
    "diffuser": {"trajectory_planner": 0.7, "return_model": 0.3},
    "decision_diffuser": {"state_planner": 0.8, "inverse": 0.2},
    "d_mpc": {"action_planner": 0.45, "clean_dynamics": 0.45, "critic": 0.1},
    "sample_and_rank": {"state_planner": 0.7, "inverse": 0.2, "critic": 0.1},
    "planner": {"planner": 0.7, "forward": 0.01, "ranker": 0.15},
    "mpdiffuser": {"planner": 0.7, "dynamics": 0.14, "forward": 0.01, "ranker": 0.15},
}
OWNER = {"planner": "mpdiffuser"}  # a method without models of its own -> the method whose models it uses
TRIED = ("cloning", "td3_bc", "rebrac", "iql", "diffusion_policy", "diffuser", "decision_diffuser")
# where the settings of a method are from
ORIGINS = dict.fromkeys(SHARES, "its paper") | dict.fromkeys(TRIED, "[trials](trials.md)")
ORIGINS |= dict.fromkeys(("planner", "mpdiffuser"), "[ablations](decisions.md)")
TRIAL = 40  # steps of the run that times a step
Cells = dict[str, dict[str, dict[str, dict[str, Any]]]]  # by task, method and training seed


def configuration(task: str, method: str, output: Path, options: Sequence[str], steps: dict[str, int]) -> DictConfig:
    """The configuration of train_state.py, checked for this evaluation.

    Args:
        task: of D4RL, or with its suite, such as ogbench/ID.
        options: of train_state.py, such as data_dir=. steps: of each model.
    """
    lengths = [f"train.{model}.steps={count}" for model, count in steps.items()]
    common = [f"task={with_suite(task)}", f"method={method}", f"output_dir={output}", "trackers=[]"]
    common += [f"evaluation.methods=[{method}]", "evaluation.parallel_controllers=1"]
    cfg = load("state", [*common, *lengths, *options])
    prepare(cfg, None, output)
    return cfg


def step_seconds(
    task: str, method: str, models: Iterable[str], folder: Path, options: Sequence[str]
) -> dict[str, float]:
    """Processor seconds of a step of each model: timed once for each robot and method, in a short run of its own."""
    file = folder / "speed" / f"{Path(task).name.partition('-')[0]}-{method}.json"

    def timed() -> dict[str, float]:
        run = file.with_suffix("")
        cfg = configuration(task, method, run, options, dict.fromkeys(models, TRIAL))
        train(cfg, dataset(cfg), start(cfg), Clock())
        logs = {model: (run / model / "log.jsonl").read_text().splitlines() for model in models}
        lines = {model: [json.loads(line) for line in log] for model, log in logs.items()}
        # the last entry: the first steps are slower
        return {model: [line["core_s"] for line in log if "core_s" in line][-1] for model, log in lines.items()}

    return measure_once(file, {"models": list(models), "options": settings_of(options)}, timed)


def settings_of(options: Sequence[str]) -> list[str]:
    """The options without the place of the data, which is no setting."""
    return [option for option in options if not option.startswith("data_dir=")]


def step_counts(
    task: str, method: str, shares: Mapping[str, float], minutes: float, folder: Path, options: Sequence[str]
) -> dict[str, int]:
    """Training steps of each model, so that all models of the method take `minutes` of a core together."""
    seconds = step_seconds(task, method, shares, folder, options)
    repeats = {"ranker": configuration(task, method, folder, options, {}).rounds}  # it is trained in rounds
    return {
        model: max(1, round(60 * minutes * share / seconds[model] / repeats.get(model, 1)))
        for model, share in shares.items()
    }


def measure(
    task: str,
    method: str,
    seed: int,
    minutes: float,
    folder: Path,
    options: Sequence[str],
    acting: Sequence[str] = (),
    shares: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A cell: train the models in `folder`, and evaluate the method. All core-minutes share the timing of a step.

    Args:
        acting: options of the evaluation alone. Cells that differ in them share the trained models.
        shares: of the training time, of all models that are trained; None: those of `SHARES`.
    """
    owner = OWNER.get(method, method)
    steps = step_counts(task, owner, shares or SHARES[owner], minutes, folder, options)
    runs = folder / "runs" / f"{minutes:g}" / task
    run, output = runs / f"{owner}-{seed}", runs / "-".join([method, str(seed), *acting]).replace("/", "_")
    common = [f"seed={seed}", *options]
    training = configuration(task, owner, run, common, steps)
    episodes = dataset(training)
    train(training, episodes, start(training), Clock())
    metrics = compare(configuration(task, method, output, [*common, *acting], steps), run / "pipeline", output)
    found = metrics["methods"][method]
    low, high = found["score"]["low"], found["score"]["high"]
    behaviour = 100 * (float(episodes.returns.mean()) - low) / (high - low)
    seconds = core_seconds(run)
    models = [model for model in SHARES[method] if model in steps]
    spent = {model: round(seconds[model] / 60, 2) for model in models}
    own = {model: steps[model] for model in models}
    facts = {key: metrics[key] for key in ("stand_in", "data", "machine", "seeds")}
    return {**facts, "behaviour": behaviour, "steps": own, "core_minutes": spent, **found}


def cell(
    task: str, method: str, seed: int, minutes: float, folder: Path, file: Path, options: Sequence[str]
) -> dict[str, Any]:
    """The cell of a method on a task: from `file` if it is there, else measured and added to it.

    Raises:
        InputError: if the file's cell has other settings or other data, or if the data are not here.
    """
    identity = identity_of(method, minutes, options)
    found = read_cells(file).get(task, {}).get(method, {}).get(str(seed))
    if found is None:
        found = stamped(identity, measure(task, method, seed, minutes, folder, options))
        cells = read_cells(file)  # again: another command may have added cells meanwhile
        cells.setdefault(task, {}).setdefault(method, {})[str(seed)] = found
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, cells_text(cells))
    where = f"{file}: {task}, {method}, seed {seed}"
    check_identity(found, identity, where, "--cells")
    check_data(found, task, options, where, "--cells")
    return found


def identity_of(method: str, minutes: float, options: Sequence[str]) -> dict[str, Any]:
    """What a cell depends on beside its task, seed and data."""
    return {"core_minutes": minutes, "shares": SHARES[OWNER.get(method, method)], "options": settings_of(options)}


def check_cells(file: Path, minutes: float, options: Sequence[str]) -> None:
    """Raise InputError if a file has a cell with other settings: a page is of one kind of cells."""
    for task, methods in read_cells(file).items():
        for method, seeds in methods.items():
            for seed, found in seeds.items():
                where = f"{file}: {task}, {method}, seed {seed}"
                check_identity(found, identity_of(method, minutes, options), where, "--cells")


def check_data(found: Mapping[str, Any], task: str, options: Sequence[str], where: object, option: str) -> None:
    """Raise InputError unless a result of `measure` is of the task's data.

    Args:
        where, option: as for `check_identity`.
    """
    if found["data"] != data_checksum(task, tuple(options)):
        raise InputError(f"{where}: made from other data; choose another {option}, or remove it")


@functools.cache
def data_checksum(task: str, options: tuple[str, ...]) -> str:
    """The checksum of a task's episodes."""
    return dataset(load("state", [f"task={with_suite(task)}", *options])).checksum()


def with_suite(task: str) -> str:
    """The id of a task, which is of D4RL where it names no suite."""
    return task if "/" in task else f"d4rl/{task}"


def cells_option(parser: argparse.ArgumentParser) -> None:
    """Add --cells."""
    parser.add_argument("--cells", type=Path, default=pages.DOCS / "cells", help="folder of the results")


def cells_file(folder: Path, minutes: float) -> Path:
    """The file of the cells with these core-minutes."""
    return folder / f"{minutes:g}.json"


def read_cells(file: Path) -> Cells:
    """All cells of a file; none where there is no file."""
    return read_json(file) if file.exists() else {}


def cells_text(cells: Cells) -> str:
    """The cells as JSON, one line for each."""
    tasks = []
    for task, methods in cells.items():
        rows = []
        for method, seeds in methods.items():
            lines = ",\n".join(f'   "{seed}": {json.dumps(found)}' for seed, found in seeds.items())
            rows.append(f'  "{method}": {{\n{lines}\n  }}')
        tasks.append(f' "{task}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(tasks) + "\n}\n"


HEAD = """# All methods on the D4RL tasks

{written_by}
(docs/cells names the machine and the commit of each cell). What each method is: [methods.md](methods.md).

{label}Normalised score (100 = the suite's expert): mean ± standard error over episodes, and in brackets the 95 %
interval of the interquartile mean (as in rliable). behaviour: mean of the data's own episodes. Each method was trained
for {minutes:g} core-minutes, all its models together. planner is mpdiffuser without the dynamics model, on the same
weights, so it was trained for less. Plans are drawn with the default settings; the number of noise levels is chosen
from held-out data. The second table holds the measured training time, without validation, and the median time of one
plan for one environment (other jobs ran beside it). The number of steps follows from timings (speed/ in --folder),
which may come from another machine; docs/cells holds the steps of each cell. Trials and ablations used hopper and
halfcheetah files alone. Seeds of the episodes: {seeds}. Where several training seeds are given: mean ± standard error
over these, each the mean of its episodes.

"""
STAND_IN = """**The data are stand-ins in D4RL's layout, not D4RL's data: no number here is a D4RL result.**

"""


def origin(command: str, results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What pages of results of `measure` begin with: the command and the machines, and a label of stand-ins."""
    results = list(results)
    cpus = " and ".join(sorted({found["machine"]["cpu"] for found in results}))
    label = STAND_IN if any(found["stand_in"] for found in results) else ""
    return {"written_by": pages.written_by(command, measured_on=cpus), "label": label}


def page(cells: Cells, minutes: float) -> str:
    """docs/offline.md: a table of scores, and one of training time and planning time."""
    every = [found for methods in cells.values() for seeds in methods.values() for found in seeds.values()]
    head = HEAD.format(
        **origin("offline_table --data-dir FOLDER", every),
        minutes=minutes,
        seeds=f"{every[0]['seeds'][0]} to {every[0]['seeds'][-1]}",
    )
    methods = [method for method in SHARES if any(method in found for found in cells.values())]
    return f"{head}{score_table(cells, methods)}\n{time_table(cells, methods)}"


def score_table(cells: Cells, methods: Sequence[str]) -> str:
    """Scores by method and task; the mean over tasks where a method has all."""
    tasks = [task for task in TASKS if task in cells]
    first = [next(iter(next(iter(cells[task].values())).values())) for task in tasks]
    behaviour = [found["behaviour"] for found in first]
    rows = [["behaviour", *(f"{each:.1f}" for each in behaviour), f"{np.mean(behaviour):.1f}"]]
    for method in methods:
        found = [list(cells[task].get(method, {}).values()) for task in tasks]
        means = [np.mean([one["score"]["mean"] for one in some]) for some in found if some]
        rows.append([method, *map(score, found), f"{np.mean(means):.1f}" if len(means) == len(tasks) else ""])
    return pages.table(["method", *tasks, "mean"], rows)


def time_table(cells: Cells, methods: Sequence[str]) -> str:
    """Core-minutes, models, milliseconds of a plan, and where the settings are from, by method."""
    rows = []
    for method in methods:
        found = [one for task in cells.values() for one in task.get(method, {}).values()]
        spent = [sum(one["core_minutes"].values()) for one in found]
        times = [one["plan_ms_single"]["median"] for one in found if "plan_ms_single" in one]
        models = ", ".join(f"{model} {share:.0%}" for model, share in SHARES[method].items())
        minutes = f"{np.median(spent):.1f} [{min(spent):.1f}, {max(spent):.1f}]"
        rows.append([method, minutes, models, f"{np.median(times):.0f}" if times else "", ORIGINS[method]])
    columns = ["method", "core-minutes: median [least, most]", "models and their share", "plan ms", "settings from"]
    return pages.table(columns, rows)


def score(cells: Sequence[dict[str, Any]]) -> str:
    """The score of a method on a task, from one cell for each training seed."""
    if not cells:
        return ""
    mean, error = mean_and_error(cells)
    if len(cells) == 1:
        low, high = cells[0]["score"]["iqm_interval"]
        return f"{mean:.1f} ± {error:.1f} [{low:.1f}, {high:.1f}]"
    return f"{mean:.1f} ± {error:.1f} ({len(cells)} seeds)"


def mean_and_error(cells: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The mean score, and its standard error: over the episodes of one training, or over several trainings."""
    if len(cells) == 1:
        return cells[0]["score"]["mean"], cells[0]["score"]["standard_error"]
    means = np.array([found["score"]["mean"] for found in cells])
    return float(means.mean()), float(standard_error(means))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(SHARES), choices=list(SHARES), metavar="METHOD")
    pages.run_options(parser, "offline", "train_state.py", [0])
    parser.add_argument("--core-minutes", type=float, default=6.0, help="of training, for each method")
    cells_option(parser)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options, file = pages.training_options(args), cells_file(args.cells, args.core_minutes)
    check_cells(file, args.core_minutes, options)
    for seed in args.seeds:
        for task in args.tasks:
            for method in args.methods:
                found = cell(task, method, seed, args.core_minutes, args.folder, file, options)
                print(f"{task:27} {method:18} {seed} {score([found])}", flush=True)
                write_whole(args.page, page(read_cells(file), args.core_minutes))


if __name__ == "__main__":
    main()
