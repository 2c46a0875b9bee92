"""Every method on the D4RL files, with the same training time: python -m experiments.offline_table --help

Each (task, method, training seed) is trained for the same core-minutes, shared out among the method's models by SHARES,
controls the task in gymnasium, and becomes a file under --cells; what is there already is reused, so a run that was
cut off goes on, and parts can be made one by one, on several days. Writes docs/offline.md. For example:

    python -m experiments.offline_table --data-dir ../shared/data
    python -m experiments.offline_table --data-dir ../shared/data --tasks hopper-medium-v2 --methods ours planner \
        --seeds 1 2
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from evaluate import compare
from experiments.measuring import kept, machine
from mpdiffuser.config import load
from mpdiffuser.files import write_whole
from mpdiffuser.training import Clock, start
from train_state import dataset, train

PAGE = Path(__file__).parent.parent / "docs" / "offline.md"
CELLS = PAGE.with_suffix("")  # kept with the page: a whole table takes longer than a machine may be had for
QUALITIES = ("medium-expert", "medium", "medium-replay")
TASKS = [f"{robot}-{quality}-v2" for robot in ("hopper", "halfcheetah") for quality in QUALITIES]
# of a method's training time what each of its models gets
SHARES: dict[str, dict[str, float]] = {
    "cloning": {"cloning": 1.0},
    "iql": {"iql": 1.0},
    "diffusion_policy": {"action_planner": 1.0},
    "diffuser": {"trajectory_planner": 0.7, "return_model": 0.3},
    "decision_diffuser": {"state_planner": 0.8, "inverse": 0.2},
    "d_mpc": {"action_planner": 0.45, "clean_dynamics": 0.45, "critic": 0.1},
    "sample_and_rank": {"state_planner": 0.7, "inverse": 0.2, "critic": 0.1},
    "planner": {"planner": 0.7, "ranker": 0.15},
    "ours": {"planner": 0.7, "dynamics": 0.15, "ranker": 0.15},
}
OWNER = {"planner": "ours"}  # whose models a method controls with, where it has none of its own
TRIAL = 40  # steps that tell how long a step takes


def configuration(task: str, method: str, output: Path, options: Sequence[str], steps: dict[str, int]) -> DictConfig:
    """Of train_state.py; `options` are its own, such as data_dir=."""
    lengths = [f"train.{model}.steps={count}" for model, count in steps.items()]
    common = [f"task=d4rl/{task}", f"method={method}", f"output_dir={output}", "trackers=[]", "evaluation.shares=1"]
    common.append(f"evaluation.methods=[{method}]")  # no baselines beside it: they have cells of their own
    return load("state", [*common, *lengths, *options])


def core_seconds(run: Path) -> dict[str, float]:
    """Of training, by model: the CPU time of the training thread, from the logs; validation is left out."""
    result: dict[str, float] = {}
    for log in sorted(run.rglob("log.jsonl")):
        model, last = log.parent.relative_to(run).parts[0], 0
        for line in map(json.loads, log.read_text().splitlines()):
            if "core_s" in line:
                result[model] = result.get(model, 0.0) + line["core_s"] * (line["step"] - last)
                last = line["step"]
    return result


def step_counts(task: str, method: str, minutes: float, folder: Path, options: Sequence[str]) -> dict[str, int]:
    """How many steps each model of a method is to be trained for, so that all take `minutes` of a core together.

    A step is timed once for each robot and method, in a short run of its own that is kept.
    """
    robot = task.partition("-")[0]
    file = folder / "speed" / f"{robot}-{method}.json"
    rounds = configuration(task, method, file, options, {}).rounds
    if not file.exists():
        run = file.with_suffix("")
        cfg = configuration(task, method, run, options, dict.fromkeys(SHARES[method], TRIAL))
        train(cfg, dataset(cfg), start(cfg), Clock())
        logs = {model: (run / model / "log.jsonl").read_text().splitlines() for model in SHARES[method]}
        lines = {model: [json.loads(line) for line in log] for model, log in logs.items()}
        # the last entry: the first steps are slower
        costs = {model: [line["core_s"] for line in log if "core_s" in line][-1] for model, log in lines.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(costs))
    seconds = json.loads(file.read_text())
    often = {"ranker": rounds}  # its training is as many runs
    return {
        model: max(1, round(60 * minutes * share / seconds[model] / often.get(model, 1)))
        for model, share in SHARES[method].items()
    }


def cell(
    task: str, method: str, seed: int, minutes: float, folder: Path, cells: Path, options: Sequence[str]
) -> dict[str, Any]:
    """What a method reaches on a task; from its file under `cells` if it was measured already, else by a run in
    `folder`."""
    file = cells / task / f"{method}-{seed}.json"
    chosen = [option for option in options if not option.startswith("data_dir=")]  # where the data lie is no setting
    owner = OWNER.get(method, method)
    identity = {"core_minutes": minutes, "shares": SHARES[owner], "options": chosen}

    def run() -> dict[str, Any]:
        steps = step_counts(task, owner, minutes, folder, options)
        runs = {name: folder / "runs" / task / f"{name}-{seed}" for name in (owner, method)}
        settings = {
            name: configuration(task, name, run, [f"seed={seed}", *options], steps) for name, run in runs.items()
        }
        episodes = dataset(settings[owner])
        train(settings[owner], episodes, start(settings[owner]), Clock())
        metrics = compare(settings[method], runs[owner] / "pipeline", runs[method])
        found = metrics["methods"][method]
        low, high = found["score"]["low"], found["score"]["high"]
        behaviour = 100 * (float(episodes.returns.mean()) - low) / (high - low)
        seconds = core_seconds(runs[owner])
        spent = {model: round(seconds[model] / 60, 2) for model in SHARES[method]}
        own = {model: steps[model] for model in SHARES[method]}
        facts = {key: metrics[key] for key in ("stand_in", "data", "machine", "seeds")}
        return {**facts, "behaviour": behaviour, "steps": own, "core_minutes": spent, **found}

    return kept(file, identity, run, "--cells")


HEAD = """# All methods on the D4RL tasks

Written by `python -m experiments.offline_table` on {date}; measured on {cpus}, {cores} shared cores (each cell
names its machine and commit). What each method is: [methods.md](methods.md).

{label}Normalised score (100 = the suite's expert): mean ± standard error over episodes, and in brackets the 95 %
interval of the interquartile mean (rliable); behaviour is the mean of the data's own episodes. Each method was trained
for {minutes:g} core-minutes, all its models together; the planner alone (planner) is MPDiffuser (ours) without the
dynamics model, on the very same models, so it was trained for less. Plans are drawn with the defaults of configs/, the
same on all tasks. The second table holds the measured time, without validation, and the median time of one plan for one
environment (other jobs beside it: an indication). Steps are set by timings (speed/ in --folder), which may be another
machine's or hour's: the measured time is what a method had here, its steps are in its cells. Seeds of the episodes:
{seeds}. Where several training seeds are given, mean ± standard error over these, each the mean of its episodes.

"""
STAND_IN = """**The data are stand-ins in D4RL's layout, not D4RL's data: no number here is a D4RL result.**

"""


def page(cells: dict[tuple[str, str, int], dict[str, Any]], minutes: float) -> str:
    """Two tables as Markdown: scores, and what they cost."""
    tasks = [task for task in TASKS if any(key[0] == task for key in cells)]
    methods = [method for method in SHARES if any(key[1] == method for key in cells)]
    some = next(iter(cells.values()))
    text = HEAD.format(
        **machine(),
        cpus=" and ".join(sorted({c["machine"]["cpu"] for c in cells.values()})),
        label=STAND_IN if any(c["stand_in"] for c in cells.values()) else "",
        minutes=minutes,
        seeds=f"{some['seeds'][0]} to {some['seeds'][-1]}",
    )
    text += f"| method | {' | '.join(tasks)} | mean |\n" + "|---" * (len(tasks) + 2) + "|\n"
    behaviour = [next(c["behaviour"] for key, c in cells.items() if key[0] == task) for task in tasks]
    text += f"| behaviour | {' | '.join(f'{b:.1f}' for b in behaviour)} | {np.mean(behaviour):.1f} |\n"
    for method in methods:
        found = [[c for key, c in cells.items() if key[:2] == (task, method)] for task in tasks]
        means = [np.mean([c["score"]["mean"] for c in some]) for some in found if some]
        whole = f"{np.mean(means):.1f}" if len(means) == len(tasks) else ""
        text += f"| {method} | {' | '.join(score(some) for some in found)} | {whole} |\n"
    text += (
        "\n| method | core-minutes: median [least, most] | models and their share | plan ms |\n" + "|---" * 4 + "|\n"
    )
    for method in methods:
        found_all = [c for key, c in cells.items() if key[1] == method]
        spent = [sum(c["core_minutes"][model] for model in SHARES[method]) for c in found_all]
        times = [c["plan_ms_single"]["median"] for c in found_all if "plan_ms_single" in c]
        models = ", ".join(f"{model} {share:.0%}" for model, share in SHARES[method].items())
        plan = f"{np.median(times):.0f}" if times else ""
        text += f"| {method} | {np.median(spent):.1f} [{min(spent):.1f}, {max(spent):.1f}] | {models} | {plan} |\n"
    return text


def score(cells: Sequence[dict[str, Any]]) -> str:
    """One task's cells of one method, one a training seed."""
    if not cells:
        return ""
    if len(cells) == 1:
        s = cells[0]["score"]
        low, high = s["iqm_interval"]
        return f"{s['mean']:.1f} ± {s['standard_error']:.1f} [{low:.1f}, {high:.1f}]"
    means = np.array([c["score"]["mean"] for c in cells])
    return f"{means.mean():.1f} ± {means.std(ddof=1) / len(means) ** 0.5:.1f} ({len(means)} seeds)"


def read(cells: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """All cells under a folder: (task, method, seed) -> what it holds."""
    files = sorted(cells.glob("*/*.json"))
    names = [(file.parent.name, *file.stem.rsplit("-", 1)) for file in files]
    return {(t, m, int(seed)): json.loads(file.read_text()) for (t, m, seed), file in zip(names, files)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(SHARES), choices=list(SHARES), metavar="METHOD")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the training")
    parser.add_argument("--core-minutes", type=float, default=6.0, help="of training, for each method")
    parser.add_argument("--folder", type=Path, default=Path("results/offline"), help="of the runs")
    parser.add_argument("--cells", type=Path, default=CELLS, help="what was measured, a file each")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--set", nargs="*", default=[], help="options of train_state.py, such as horizon=32")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = [*([f"data_dir={args.data_dir}"] if args.data_dir else []), *args.set]
    for seed in args.seeds:
        for task in args.tasks:
            for method in args.methods:
                found = cell(task, method, seed, args.core_minutes, args.folder, args.cells, options)
                print(f"{task:27} {method:18} {seed} {score([found])}", flush=True)
                write_whole(args.page, page(read(args.cells), args.core_minutes))


if __name__ == "__main__":
    main()
