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

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from mpdiffuser.config import OWN, PATHS, load
from mpdiffuser.errors import InputError

FLAGS = ("-m", "--multirun")
HYDRA = ("hydra/", "hydra.")  # words that begin so are Hydra's own, such as hydra/launcher=joblib
IN_NAME = ("task", "method", "quality")  # options that the default output_dir has in its name
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # one run after the other, on this terminal
LOG = "output.log"


@dataclass(frozen=True)
class Run:
    """One run: the words of its command line, and its folder."""

    words: tuple[str, ...]
    folder: Path


def sweep(name: str, words: Sequence[str], own_files: str | None = None) -> int:
    """Run the program of `sys.argv[0]` once for each combination of values, and return the exit status.

    Args:
        name: of the program's configuration.
        words: of the command line, without FLAGS; an option has one value or several, as in seed=0,1,2.
        own_files: the word --config-dir=FOLDER; None: there is none.

    Returns:
        0 if all runs succeeded, otherwise 2.

    Raises:
        InputError: for options of any run that are not allowed, or for two runs with one folder. Nothing has run then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--multirun: starts each run in one process; launch runs with several processes one by one")
    ours, theirs = ([word for word in words if word.startswith(HYDRA) == its] for its in (False, True))
    runs = plan(name, ours, own_files)
    for number, run in enumerate(runs):
        print(f"run {number}: {' '.join(run.words[:-1])} -> {run.folder}", flush=True)
    commands = [[*program(), *([own_files] if own_files else []), *run.words] for run in runs]
    numbers = ",".join(map(str, range(len(runs))))
    try:
        with initialize_config_module("configs", version_base=None):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            task = functools.partial(start, commands)
            returned = hydra.multirun("sweep", task, [*theirs, f"run={numbers}"], with_log_configuration=False)
    except HydraException as error:
        raise InputError(f"--multirun: {' '.join(str(error).split())}") from error
    found = [job.return_value for batch in returned for job in batch]
    for run, status in zip(runs, found, strict=True):
        print(f"{'done' if status == 0 else f'FAILED (exit status {status})'}: {run.folder}")
    return 2 if any(found) else 0


def plan(name: str, words: Sequence[str], own_files: str | None = None) -> list[Run]:
    """Return the runs of a command line; arguments and errors as `sweep`.

    Without the option output_dir a run's folder is the program's usual one, with the swept options in its name. With
    it, the folders lie in that folder.
    """
    folder = Path(own_files.removeprefix(OWN)) if own_files else None
    choices = [values(word) for word in words]
    given = any(word.startswith("output_dir=") for word in words)
    runs: list[Run] = []
    for combination in itertools.product(*choices):
        cfg = load(name, list(combination), folder)
        if "evaluation" not in cfg:
            raise InputError("--multirun: only the programs that train or evaluate have it")
        if cfg.output_dir is None:
            raise InputError("output_dir: is needed with --multirun; each run gets a folder in it")
        swept = [word for word, several in zip(combination, choices) if len(several) > 1]
        parts = [_part(word) for word in swept if given or word.partition("=")[0] not in IN_NAME]
        usual = Path(cfg.output_dir)
        named = usual / "-".join(parts) if given else usual.with_name("-".join([usual.name, *parts]))
        kept = [word for word in combination if not word.startswith("output_dir=")]
        runs.append(Run((*kept, f"output_dir={named}"), named))
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
    name, *command = sys.argv[0].split(" ")  # the installed command is "mpdiffuser train-state"
    if Path(name).name == "mpdiffuser" and command:
        return [sys.executable, "-m", "mpdiffuser_cli", *command]
    return [sys.executable, sys.argv[0]]


def start(commands: Sequence[Sequence[str]], cfg: DictConfig) -> int:
    """Run the command number cfg.run and return its exit status; Hydra calls this.

    The output goes to the terminal if runs follow each other, otherwise to a file in the job's folder.
    """
    config: Any = HydraConfig.get()
    if config.launcher._target_ == BASIC:
        return subprocess.run(commands[cfg.run]).returncode
    with open(Path(config.runtime.output_dir) / LOG, "w") as log:
        return subprocess.run(commands[cfg.run], stdout=log, stderr=subprocess.STDOUT).returncode


def _part(word: str) -> str:
    """Return sampler.steps=2 as steps2, for a folder's name."""
    option, _, value = word.partition("=")
    return re.sub(r"[^\w.-]", "_", f"{option.rpartition('.')[2]}{value}")
