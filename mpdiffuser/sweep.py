"""Several runs with one command: train_state.py --multirun seed=0,1,2 task=d4rl/hopper-medium-v2

Each run is the program itself, in a process of its own, with one value of each option. Hydra's launchers start them:
one after the other by default, `hydra/launcher=joblib` at the same time, others on a cluster (docs/train.md).
"""

import functools
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from mpdiffuser.config import OWN, PATHS, load
from mpdiffuser.errors import InputError

HYDRA = ("hydra/", "hydra.")  # words that begin so are Hydra's own, such as hydra/launcher=joblib
IN_NAME = ("task", "method", "quality")  # options that the default output_dir has in its name
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # one run after the other, on this terminal
LOG = "output.log"


@dataclass(frozen=True)
class Run:
    """One run: the words of its command line, and its folder."""

    words: tuple[str, ...]
    folder: Path


def sweep(name: str, words: Sequence[str], folder: Path | None = None) -> int:
    """Run the program of `sys.argv[0]` once for each combination of values, and return the exit status.

    Args:
        name: of the program's configuration.
        words: of the command line, without flags; an option has one value or several, as in seed=0,1,2.
        folder: the user's configuration files (see `mpdiffuser.config.load`).

    Returns:
        0 if all runs succeeded, otherwise 2.

    Raises:
        InputError: for a name or type of an option of any run that is not allowed, for two runs with one folder, or if
            the launcher fails. But for the last, nothing has run then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--multirun: starts each run in one process; launch runs with several processes one by one")
    ours, theirs = ([word for word in words if word.startswith(HYDRA) == its] for its in (False, True))
    runs = plan(name, ours, folder)
    for number, run in enumerate(runs):
        print(f"run {number}: {' '.join(run.words[:-1])} -> {run.folder}", flush=True)
    commands = [[*program(), *([f"{OWN}{folder}"] if folder else []), *run.words] for run in runs]
    numbers = ",".join(map(str, range(len(runs))))
    try:
        with initialize_config_module("configs", version_base=None):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            task = functools.partial(start, commands, os.getcwd())
            returned = hydra.multirun("sweep", task, [*theirs, f"run={numbers}"], with_log_configuration=False)
    except (HydraException, ImportError) as error:
        raise InputError(f"--multirun: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        raise InputError("--multirun: stopped; the same command goes on where it was") from None
    found = [job.return_value for batch in returned for job in batch]
    for run, (status, log) in zip(runs, found, strict=True):
        outcome = "done" if status == 0 else f"FAILED (exit status {status})"
        print(f"{outcome}: {run.folder}{f' (output: {log})' * bool(log)}")
    return 2 if any(status for status, _ in found) else 0


def plan(name: str, words: Sequence[str], folder: Path | None = None) -> list[Run]:
    """Return the runs of a command line; arguments and errors as `sweep`.

    Without the option output_dir a run's folder is the program's usual one, with the swept options in its name. With
    it, the folders lie in that folder.
    """
    options = [word.partition("=")[0] for word in words]
    if twice := next((option for option in options if options.count(option) > 1), None):
        raise InputError(f"{twice}: is given twice; list its values, as in {twice}=A,B")
    choices = [values(word) for word in words]
    combinations = list(itertools.product(*choices))
    configurations = [load(name, list(combination), folder) for combination in combinations]
    given, usual = "output_dir" in options, [cfg.get("output_dir") for cfg in configurations]
    if any("evaluation" not in cfg for cfg in configurations):
        raise InputError("--multirun: only the programs that train or evaluate have it")
    if None in usual:
        raise InputError("output_dir: is needed with --multirun; each run gets a folder in it")
    # options that the usual folders' names have already
    named = () if given else IN_NAME
    kept = [each for each, several in zip(options, choices) if len(several) > 1 and each in named]
    if len({*usual}) < np.prod([len(choices[options.index(each)]) for each in kept]):
        named = ()
    runs: list[Run] = []
    for combination, start_folder in zip(combinations, map(Path, usual), strict=True):
        swept = [word for word, several in zip(combination, choices) if len(several) > 1]
        parts = [_part(word) for word in swept if word.partition("=")[0] not in named]
        own = start_folder / "-".join(parts) if given else start_folder.with_name("-".join([start_folder.name, *parts]))
        others = [word for word in combination if not word.startswith("output_dir=")]
        runs.append(Run((*others, f"output_dir={own}"), own))
    for run, other in itertools.combinations(runs, 2):
        if run.folder == other.folder:
            raise InputError(f"--multirun: two runs have the folder {run.folder}; give each option's value once")
    return runs


def values(word: str) -> list[str]:
    """Return the words NAME=VALUE of a word NAME=VALUE,VALUE or NAME=range(...), or the word itself.

    Raises:
        InputError: for values that cannot be listed.
    """
    option, equals, _ = word.partition("=")
    if not equals or option in PATHS:  # a path may have commas
        return [word]
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return [word]
        return [f"{option}={value}" for value in override.sweep_string_iterator()]
    except (HydraException, TypeError) as error:
        raise InputError(f"{option}: cannot list the values of {word!r} ({' '.join(str(error).split())})") from error


def program() -> list[str]:
    """Return the command that starts this program again."""
    if not Path(sys.argv[0]).is_file():  # the installed command is "mpdiffuser train-state"
        return [sys.executable, "-m", "mpdiffuser_cli", sys.argv[0].rpartition(" ")[2]]
    return [sys.executable, sys.argv[0]]


def start(commands: Sequence[Sequence[str]], folder: str, cfg: DictConfig) -> tuple[int, str]:
    """Run the command number cfg.run in a folder; Hydra calls this.

    Returns:
        The exit status, and the file of the output. It is "" if runs follow each other, whose output goes to the
        terminal.
    """
    config: Any = HydraConfig.get()
    if config.launcher._target_ == BASIC:
        return subprocess.run(commands[cfg.run], cwd=folder).returncode, ""
    file = Path(config.runtime.output_dir) / LOG
    with open(file, "w") as log:
        return subprocess.run(commands[cfg.run], cwd=folder, stdout=log, stderr=subprocess.STDOUT).returncode, str(file)


def _part(word: str) -> str:
    """Return sampler.steps=2 as steps2, for a folder's name."""
    option, _, value = word.partition("=")
    return re.sub(r"[^\w.-]", "_", f"{option.rpartition('.')[2]}{value}")
