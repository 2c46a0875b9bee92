"""MPDiffuser's planner against cloning with few expert episodes: python -m experiments.demonstrations --help

D4RL's medium-expert files end with an expert's episodes. From that half, the experiment draws 1, 5, 20 and 50 episodes,
trains both methods on them with the default options, and lets both control the task from the same seeds. The folder
keeps all results, so a command that was cut off resumes. Writes docs/demonstrations.md. For example:

    python -m experiments.demonstrations --data-dir ../shared/data
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from evaluation.compare import compare, prepare
from evaluation.statistics import standard_error
from experiments import pages
from experiments.measuring import measure_once
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole
from mpdiffuser.launch import Clock, start
from train_state import dataset, train

METHODS = ("cloning", "planner")
COUNTS = (1, 5, 20, 50)


def experts(episodes: Episodes, count: int, seed: int) -> Episodes:
    """Draw `count` episodes at random from those that start in the second half of the rows.

    Raises:
        InputError: if that half has fewer episodes.
    """
    half = np.flatnonzero(episodes.offsets[:-1] >= episodes.offsets[-1] // 2)
    if len(half) < count:
        raise InputError(f"--counts: {count} episodes are wanted, the second half of the file has {len(half)}")
    return episodes.select(np.sort(np.random.default_rng(seed).choice(half, count, replace=False)))


def configuration(robot: str, seed: int, output: Path, options: Sequence[str]) -> DictConfig:
    """The configuration of train_state.py; `seed` is that of the training."""
    chosen = [f"task=d4rl/{robot}-medium-expert-v2", f"seed={seed}", f"output_dir={output}", "trackers=[]"]
    cfg = load("state", [*chosen, f"evaluation.methods=[{','.join(METHODS)}]", *options])
    prepare(cfg, None, output)
    return cfg


def measure(robot: str, count: int, seed: int, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Train both methods on `count` episodes in `folder`, and evaluate them."""
    cfg = configuration(robot, seed, folder / f"{robot}-{count}-{seed}", options)
    episodes = experts(dataset(cfg), count, seed)
    train(cfg, episodes, start(cfg), Clock())
    metrics = compare(cfg, Path(cfg.output_dir) / "pipeline", Path(cfg.output_dir))
    facts = {key: metrics[key] for key in ("stand_in", "machine", "seeds")}
    returns = {name: metrics["methods"][name]["returns"] for name in METHODS}
    return {**facts, "demonstrated": float(episodes.returns.mean()), "returns": returns}


HEAD = """# Few demonstrations

{written_by}

{label}Returns, mean ± standard error over episodes. The training data are expert episodes of the file
ROBOT-medium-expert-v2, drawn with the training seed. Both methods have the default options; the number of training
steps follows from the held-out loss. Difference: planner minus cloning, from the same starts. Seeds of the episodes:
{seeds}.

"""


def page(results: dict[tuple[str, int, int], dict[str, Any]]) -> str:
    """docs/demonstrations.md: one row for each robot, number of episodes and training seed."""
    first = next(iter(results.values()))
    label = "**The files are stand-ins, not D4RL's data.** " if first["stand_in"] else ""
    seeds = f"{first['seeds'][0]} to {first['seeds'][-1]}"
    rows = []
    for (robot, count, seed), found in results.items():
        cloning, planner = (np.array(found["returns"][name]) for name in METHODS)
        pairs = (mean_and_error(each) for each in (cloning, planner, planner - cloning))
        rows.append([robot, count, seed, f"{found['demonstrated']:.0f}", *pairs])
    columns = ["robot", "episodes", "training seed", "demonstrated", *METHODS, "difference"]
    head = HEAD.format(written_by=pages.written_by("demonstrations"), label=label, seeds=seeds)
    return head + pages.table(columns, rows)


def mean_and_error(values: np.ndarray) -> str:
    """Mean ± standard error of values (n,)."""
    return f"{values.mean():.0f} ± {standard_error(values):.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    parser.add_argument("--robots", nargs="*", default=["hopper", "halfcheetah"], help="such as walker2d")
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS, help="numbers of episodes")
    pages.run_options(parser, "demonstrations", "train_state.py")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = pages.training_options(args)
    results = {}
    for seed in args.seeds:
        for robot in args.robots:
            for count in args.counts:
                identity = {"robot": robot, "count": count, "seed": seed, "options": args.set}
                file = args.folder / f"{robot}-{count}-{seed}.json"
                found = measure_once(file, identity, partial(measure, robot, count, seed, args.folder, options))
                results[robot, count, seed] = found
                returns = {name: mean_and_error(np.array(each)) for name, each in found["returns"].items()}
                print(robot, count, seed, returns, flush=True)
    write_whole(args.page, page(results))


if __name__ == "__main__":
    main()
