"""Settings of the baselines, chosen by one rule: python -m experiments.trials --help

Each method has four settings, and those that draw plans three more, with 10 noise levels: the rule for levels
(`mpdiffuser.tuning`) prefers few, with which their guidance hardly acts. All are trained on the same two files for the
same core-minutes, with a training seed and episodes that no table uses. The setting with the highest mean score over
the files is chosen. It becomes the method's default, and all tables use it. The folder --results keeps all results, so
a command that was cut off resumes. Writes docs/trials.md. For example:

    python -m experiments.trials --data-dir ../shared/data
    python -m experiments.trials --data-dir ../shared/data --methods td3_bc iql
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import pages
from experiments.measuring import file_name, measure_once
from experiments.offline_table import TASKS, check_data, measure, origin, score
from mpdiffuser.files import write_whole

FILES = ("hopper-medium-replay-v2", "halfcheetah-medium-expert-v2")
SEED, FIRST_SEED = 100, 5000  # of the training, and of the first episode


@dataclass(frozen=True)
class Setting:
    """Options that differ from the defaults: of the training, and of acting alone."""

    training: tuple[str, ...] = ()
    acting: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The options without their sections, such as "steps=10 guidance=2.4"."""
        return " ".join(re.sub(r"^\w+\.\w+\.", "", option) for option in [*self.training, *self.acting])


def of_training(*options: str) -> Setting:
    return Setting(training=options)


def drawn(method: str, *settings: str) -> tuple[Setting, ...]:
    """Settings of a method that draws plans: words NAME=VALUE of its section. They need no training of their own."""
    return tuple(Setting(acting=tuple(f"baselines.{method}.{word}" for word in each.split())) for each in settings)


# each option that a setting of the method changes is in all of them, so they do not depend on the defaults. The first
# follows the paper, that of cloning is our own (docs/methods.md)
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "cloning": (
        of_training("train.cloning.learning_rate=1e-3"),
        of_training("train.cloning.learning_rate=3e-4"),
        of_training("train.cloning.learning_rate=1e-3", "train.cloning.batch_size=1024"),
        of_training("train.cloning.learning_rate=3e-3"),
    ),
    "td3_bc": (
        of_training("baselines.td3_bc.alpha=2.5"),
        of_training("baselines.td3_bc.alpha=1.0"),
        of_training("baselines.td3_bc.alpha=5.0"),
        of_training("baselines.td3_bc.alpha=2.5", "train.td3_bc.learning_rate=1e-3"),
    ),
    "rebrac": (
        of_training("baselines.rebrac.actor_penalty=0.05"),
        of_training("baselines.rebrac.actor_penalty=0.01"),
        of_training("baselines.rebrac.actor_penalty=0.1"),
        of_training("baselines.rebrac.actor_penalty=0.05", "train.rebrac.learning_rate=1e-3"),
    ),
    "iql": (
        of_training("train.iql.learning_rate=3e-4"),
        of_training("train.iql.learning_rate=3e-4", "baselines.iql.expectile=0.9"),
        of_training("train.iql.learning_rate=3e-4", "baselines.iql.inverse_temperature=10.0"),
        of_training("train.iql.learning_rate=1e-3"),
    ),
    "diffusion_policy": drawn(
        "diffusion_policy",
        "steps=null chunk=8 temperature=1.0",
        "steps=null chunk=1 temperature=1.0",
        "steps=null chunk=8 temperature=0.5",
        "steps=null chunk=1 temperature=0.5",
        "steps=10 chunk=8 temperature=1.0",
        "steps=10 chunk=1 temperature=1.0",
        "steps=10 chunk=8 temperature=0.5",
    ),
    "diffuser": drawn(
        "diffuser",
        "steps=null guidance=1.0 temperature=1.0",
        "steps=null guidance=0.3 temperature=1.0",
        "steps=null guidance=3.0 temperature=1.0",
        "steps=null guidance=1.0 temperature=0.5",
        "steps=10 guidance=1.0 temperature=1.0",
        "steps=10 guidance=3.0 temperature=1.0",
        "steps=10 guidance=1.0 temperature=0.5",
    ),
    "decision_diffuser": drawn(
        "decision_diffuser",
        "steps=null guidance=1.2 target=0.9 temperature=0.7",
        "steps=null guidance=2.4 target=0.9 temperature=0.7",
        "steps=null guidance=1.2 target=0.7 temperature=0.7",
        "steps=null guidance=1.2 target=0.9 temperature=0.35",
        "steps=10 guidance=1.2 target=0.9 temperature=0.7",
        "steps=10 guidance=2.4 target=0.9 temperature=0.7",
        "steps=10 guidance=1.2 target=0.9 temperature=0.35",
    ),
}
Results = dict[str, dict[str, list[dict[str, Any]]]]  # by method and setting: one result for each file

HEAD = """# Trials of the baselines' settings

{written_by}

{label}The rule is the same for all methods: four settings each, {minutes:g} core-minutes of training, the files below,
training seed {seed}, 20 episodes from seed {first} on. No table uses this training seed or these episodes. Methods that
draw plans have three settings more, with 10 noise levels, since with the few levels that the rule for levels chooses
(steps=null, [Train](train.md#the-number-of-noise-levels)) their guidance hardly acts. The setting with the highest mean
over the files is chosen (bold), and is the method's default. MPDiffuser's own settings were also chosen on hopper and
halfcheetah, with many more trials ([ablations](decisions.md)). The first setting of a method follows its paper, that of
cloning is our own ([methods](methods.md)). Normalised score: mean ± standard error over episodes, and in brackets the
95 % interval of the interquartile mean.

"""


def mean_score(found: Sequence[dict[str, Any]]) -> float:
    """The mean over the files."""
    return float(np.mean([one["score"]["mean"] for one in found]))


def chosen(found: dict[str, list[dict[str, Any]]]) -> str:
    """The name of the setting with the highest mean score over the files."""
    return max(found, key=lambda name: mean_score(found[name]))


def page(results: Results, files: Sequence[str], minutes: float) -> str:
    """docs/trials.md: a table with a row for each setting."""
    every = [one for settings in results.values() for found in settings.values() for one in found]
    head = HEAD.format(
        **origin("trials --data-dir FOLDER", every),
        minutes=minutes,
        seed=SEED,
        first=FIRST_SEED,
    )
    rows = []
    for method, settings in results.items():
        best = chosen(settings)
        for name, found in settings.items():
            mean = f"{mean_score(found):.1f}"
            rows.append([method, name, *(score([one]) for one in found), f"**{mean}**" if name == best else mean])
    return head + pages.table(["method", "setting", *files, "mean"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where the files lie; the suite's own folder by default")
    parser.add_argument("--files", nargs="*", default=list(FILES), choices=TASKS, metavar="TASK")
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="METHOD")
    parser.add_argument("--core-minutes", type=float, default=6.0, help="of training, for each setting")
    parser.add_argument("--folder", type=Path, default=Path("results/trials"), help="of the runs")
    parser.add_argument("--results", type=Path, default=pages.DOCS / "trials", help="folder of the results")
    parser.add_argument("--page", type=Path, default=pages.DOCS / "trials.md")
    parser.add_argument("--set", nargs="*", default=[], help="options of train_state.py, such as horizon=32")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    own = [f"evaluation.first_seed={FIRST_SEED}", *pages.training_options(args)]
    results: Results = {}
    for method in SETTINGS:
        for setting in SETTINGS[method]:
            files = {task: args.results / f"{task}-{method}-{file_name(setting.name)}" for task in args.files}
            if method not in args.methods and not all(file.exists() for file in files.values()):
                continue  # the page has what was measured before too
            folder = args.folder / file_name(" ".join(setting.training) or "any").removesuffix(".json")
            options = [*own, *setting.training]
            identity = {"core_minutes": args.core_minutes, "setting": setting.name, "options": list(args.set)}
            for task, file in files.items():

                def measured() -> dict[str, Any]:
                    return measure(task, method, SEED, args.core_minutes, folder, options, setting.acting)  # noqa: B023

                found = measure_once(file, identity, measured, "--results")
                check_data(found, task, own, file, "--results")
                results.setdefault(method, {}).setdefault(setting.name, []).append(found)
                print(f"{task:28} {method:18} {setting.name}: {score([found])}", flush=True)
    write_whole(args.page, page(results, args.files, args.core_minutes))


if __name__ == "__main__":
    main()
