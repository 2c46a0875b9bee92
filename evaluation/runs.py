"""Compare finished runs: mpdiffuser compare RUN RUN ... [--output FOLDER]

Trainings of one task that differ in the seed alone are averaged. Those that differ in other options or in their data
have rows of their own, and so have evaluations by evaluate.py of different pipelines. The error over runs tells how
much trainings scatter, the error over episodes how much the episodes of one run do.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from evaluation.labels import colors, in_order, method_of, reference_of
from evaluation.metrics_schema import explanations, limit_key, read_metrics, reference_row
from evaluation.report import losses, read_log
from evaluation.statistics import paired_difference, standard_error, summary
from evaluation.table import aligned
from mpdiffuser.commands import entry_point, program
from mpdiffuser.config import flat
from mpdiffuser.errors import InputError
from mpdiffuser.files import replacing, write_whole, writing

# options in which runs of one row may differ: the seed, where things are, and how they are computed
SAME_ROW = {
    *("seed", "collect_seed", "output_dir", "run", "suffix", "dataset", "data_root", "data_dir", "dataset_name"),
    *("processes", "threads", "trackers", "checkpoint_every", "skip_bad_steps", "decoder", "debug_rules"),
    *("evaluation.methods", "evaluation.parallel_controllers"),
}
LONGEST = 48  # letters of the options that a row names
FEWEST = 5  # runs from which the interval of their interquartile mean is shown; of fewer it is far too narrow
TITLES = ("method", "runs", "return", "+-runs", "+-episodes", "IQM", "95 % interval", "score", "cost", "within")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, metrics and options."""

    folder: Path
    metrics: dict[str, Any]
    options: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The task's name; where the run's folder stands for it, the beginning of the data's checksum."""
        name, folder = str(self.metrics.get("task", "")), self.folder.absolute()
        own = name in ("", folder.name, folder.parent.name)
        return f"data {str(self.metrics.get('data'))[:8]}" if own else name


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        InputError: if the folder holds no evaluation, or it is damaged.
    """
    metrics, file = read_metrics(folder / "metrics.json"), folder / "config.yaml"
    if file.is_file():  # of a training
        try:
            config = OmegaConf.load(file)
            if not isinstance(config, DictConfig):
                raise ValueError("no options in it")
            options = flat(config)
        except Exception as error:  # of YAML, of OmegaConf, or of the text's encoding
            raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]}); train again") from error
        collected = "collect_seed" in options and options.get("dataset") is None  # by the run, with a seed of its own
        if not collected:
            options["data"] = str(metrics.get("data"))[:8]
    else:
        found = flat(OmegaConf.create(metrics.get("settings", {})))
        parts = ("sampler.", "baselines.")
        options = {key if key.startswith(parts) else f"evaluation.{key}": value for key, value in found.items()}
        options["pipeline"] = str(metrics.get("pipeline"))[:8]
    return Run(folder, metrics, options | {"stand_in": bool(metrics.get("stand_in"))})


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return what is special about some runs of a task -> these runs.

    That is the options in which they differ from others, such as "horizon=8", or their first folder's name where this
    would be too long. If all are alike it is "".
    """
    keys = sorted({key for run in runs for key in run.options} - SAME_ROW)
    differ = [key for key in keys if len({repr(run.options.get(key)) for run in runs}) > 1]
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(", ".join(f"{key}={run.options.get(key)}" for key in differ), []).append(run)
    if all(len(name) <= LONGEST for name in found):
        return found
    folders = [members[0].folder.absolute().parts for members in found.values()]
    depths = range(1, 1 + max(map(len, folders)))
    depth = next(depth for depth in depths if len({parts[-depth:] for parts in folders}) == len(folders))
    return {"/".join(parts[-depth:]): members for parts, members in zip(folders, found.values(), strict=True)}


def rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Yield the titles of a task's table, then the cells of each row."""
    everything = in_order({method for run in runs for method in run.metrics["methods"]})
    reference = reference_of(everything)
    yield [*TITLES, f"minus {reference}"]
    for special, members in groups(runs).items():
        for method in everything:
            found = [run.metrics["methods"] for run in members if method in run.metrics["methods"]]
            if found:
                name = f"{method} ({special})" if special else method
                yield [name, *cells([each[method] for each in found]), difference(found, method, reference)]


def cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of a method, from its metrics in each run."""
    means = [float(np.mean(each["returns"])) for each in found]
    within = np.mean([standard_error(np.array(each["returns"])) for each in found])
    over = summary(means)
    several, enough = len(means) > 1, len(means) >= FEWEST
    limit = limit_key(dict(found[0]))
    scores = [each["score"]["mean"] for each in found if "score" in each]
    return [
        str(len(means)),
        f"{over['mean']:.1f}",
        f"{over['standard_error']:.1f}" if several else "",
        f"{within:.1f}",
        f"{over['iqm']:.1f}" if enough else "",
        "[{:.1f}, {:.1f}]".format(*over["iqm_interval"]) if enough else "",
        f"{np.mean(scores):.3f}" if len(scores) == len(means) else "",
        f"{np.mean([each['cost']['mean'] for each in found]):.1f}" if all("cost" in each for each in found) else "",
        f"{np.mean([each['share_within_limit'][limit] for each in found]):.0%}" if limit else "",
    ]


def difference(found: Sequence[Mapping[str, Any]], method: str, reference: str) -> str:
    """The paired difference to the reference, +- its standard error over runs; of one run, over episodes.

    Args:
        found: row -> metrics, of each run. method: the row. reference: as `reference_row` takes it.
    """
    others = [reference_row(method, reference, each) for each in found]
    pairs = []
    for other, each in zip(others, found, strict=True):
        if other == method or other not in each or len(each[other]["returns"]) != len(each[method]["returns"]):
            return ""
        pairs.append(paired_difference(each[method]["returns"], each[other]["returns"]))
    if len(pairs) == 1:
        return f"{pairs[0]['mean']:+.1f} +-{pairs[0]['standard_error']:.1f}"
    means = np.array([pair["mean"] for pair in pairs])
    return f"{means.mean():+.1f} +-{standard_error(means):.1f}"


def text(runs: Sequence[Run]) -> str:
    """The tables of all tasks."""
    parts = []
    for task, members in by_task(runs).items():
        episodes = sorted({len(method["returns"]) for run in members for method in run.metrics["methods"].values()})
        count = f"{len(members)} run{'s' if len(members) > 1 else ''}"
        parts.append(f"{task}: {count}, {' or '.join(map(str, episodes))} episodes each")
        table = list(rows(members))
        kept = [place for place in range(len(table[0])) if any(row[place] for row in table[1:])]
        parts.append(aligned([[row[place] for place in kept] for row in table]))
        said = [line for run in members for line in explanations({**run.metrics, "levels": {}})]
        parts += dict.fromkeys(said)
    return "\n".join(parts)


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return task -> its runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.task, []).append(run)
    return found


def draw(runs: Sequence[Run], file: Path) -> None:
    """Write a figure: for each task the share of episodes above each return, and each model's held-out loss."""
    tasks = by_task(runs)
    models = list(dict.fromkeys(log.parent.name for run in runs for log in sorted(run.folder.glob("*/log.jsonl"))))
    figure = Figure(figsize=(3.4 * (1 + len(models)), 2.8 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 1 + len(models), squeeze=False)
    for line, (task, members) in zip(panels, tasks.items(), strict=True):
        _profile(line[0], task, members)
        for panel, model in zip(line[1:], models, strict=True):
            for number, run in enumerate(members):
                log = run.folder / model / "log.jsonl"
                points = losses(read_log(log), "validation_loss") if log.is_file() else np.empty((0, 2))
                panel.plot(*points.T, color=f"C{number % 10}", label=run.folder.name)
            panel.set(title=model.replace("_", " "), xlabel="step", ylabel="held-out loss")
            panel.legend(fontsize=7)
    with writing(file), replacing(file) as handle:
        figure.savefig(handle, dpi=110, format="png")


def _profile(panel: Any, task: str, members: Sequence[Run]) -> None:
    """Draw the share of episodes with at least each return (a performance profile, Agarwal et al. 2021)."""
    drawn = colors()
    for number, (special, group) in enumerate(groups(members).items()):
        for method in in_order({name for run in group for name in run.metrics["methods"]}):
            returns = [run.metrics["methods"][method]["returns"] for run in group if method in run.metrics["methods"]]
            values = np.sort(np.concatenate(returns))
            share = 1 - np.arange(len(values)) / len(values)
            color = drawn.get(method_of(method), ("#777777", ""))[0]
            style = ("-", "--", ":", "-.")[number % 4]
            panel.step(values, share, where="pre", color=color, linestyle=style, label=f"{method} {special}".strip())
    panel.set(title=task, xlabel="return of an episode", ylabel="share of episodes at least", ylim=(0, 1.02))
    panel.legend(fontsize=7)


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of the runs on the command line, and with --output write the figure."""
    parser = argparse.ArgumentParser(prog=program("evaluation.runs"), description="Compare finished runs.")
    parser.add_argument("run", type=Path, nargs="+", help="a folder with metrics.json, of training or of evaluate.py")
    parser.add_argument("--output", type=Path, help="folder for comparison.txt and comparison.png")
    args = parser.parse_args(arguments)
    folders = [folder.resolve() for folder in args.run]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise InputError(f"{twice}: is given twice")
    runs = [read_run(folder) for folder in args.run]
    print(text(runs))
    if args.output is not None:
        with writing(args.output):
            args.output.mkdir(parents=True, exist_ok=True)
            write_whole(args.output / "comparison.txt", text(runs) + "\n")
        draw(runs, args.output / "comparison.png")
        print(f"Figure: {args.output / 'comparison.png'}")


if __name__ == "__main__":
    sys.exit(main())
