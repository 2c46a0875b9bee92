"""Fuzz: files and options that are damaged at random must give a clear error or load correctly.

Another exception, a hang or an endless allocation is a fault. Each target writes valid files (datasets: `layouts`), and
reads them again after `spoil` has damaged one thing. A fork does 20 reads; each has 10 seconds of processor time and
4 GB. Whatever loads is checked.
"""

import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from envs.datasets import open_dataset
from envs.datasets.readers.lerobot import read_lerobot
from evaluation.check import check_evaluation
from experiments.reliability import layouts
from experiments.reliability.spoil import spoil
from experiments.untrained import random_episodes, small_pipeline
from mpdiffuser.config import load
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import KINDS, Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, write_manifest
from mpdiffuser.launch import check_training
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.pipeline import MPDiffuserPipeline

SECONDS, MEMORY = 10, 4 * 2**30
BATCH = 20  # read by one fork
CONFIGS, PROGRAMS = Path(__file__).parents[2] / "configs", ("vision", "state")
WORDS = ["null", "true", "-1", "0", "1e309", "nan", "[]", "[1,2", "{}", "{a: 1}", "''", "x", "../x", "a=b", "1,2", "é"]
WORDS += ["\x00", "9" * 20, "${seed}", "${oc.env:HOME}", "${nothing}", "${horizon}", "${evaluation}", "${"]
WORDS += ["!!python/object/apply:os.system [id]"]


def make_pipeline(folder: Path) -> None:
    """A pipeline folder with the model of another method."""
    CloningPolicy(3, 2, hidden=16).save_pretrained(folder / "cloning")
    small_pipeline().save_pretrained(folder)


def read_pipeline(folder: Path) -> None:
    """Read a damaged folder with a manifest that fits, as an attacker would write it."""
    if (folder / MANIFEST).exists():
        write_manifest(folder)
    read_damaged_pipeline(folder)


def read_damaged_pipeline(folder: Path) -> None:
    controller = Controller(MPDiffuserPipeline.from_pretrained(folder))
    actions = controller.act(np.zeros((1, 3), np.float32))
    assert np.isfinite(actions).all() and (controller.pipeline.action_scale.clip(actions) == actions).all()


def make_episodes(folder: Path) -> None:
    shutil.rmtree(folder)
    random_episodes(3, 5, frame_size=8).save(folder)


def check_valid(episodes: Episodes) -> None:
    """Fails unless arrays are as `Episodes` documents them, every number is finite, and every episode has an end."""
    for key, array in episodes.check_finite().arrays.items():
        dtype, dimensions = KINDS.get(key, (str(array.dtype), array.ndim))
        assert (str(array.dtype), array.ndim) == (dtype, dimensions), f"{key}: {array.dtype} {array.shape}"
        assert array.dtype.kind in "fiub" and array.size, f"{key}: {array.dtype} {array.shape}"
        assert array.dtype != bool or np.asarray(array).view(np.uint8).max() <= 1, f"{key}: neither true nor false"
    offsets = np.asarray(episodes.offsets)
    assert offsets.dtype.kind == "i" and episodes.lengths.min() > 0 and offsets[-1] == len(episodes["actions"])
    assert episodes.checksum() and json.dumps(episodes.info)


def read_episodes(folder: Path) -> None:
    check_valid(Episodes.load(folder))


def read_dataset(folder: Path) -> None:
    """Open the folder, or its only file, as a user does."""
    files = [file for file in folder.iterdir() if file.suffix in (".hdf5", ".npz")]
    check_imported(open_dataset(files[0] if len(files) == 1 else folder))


def read_films(folder: Path) -> None:
    check_imported(read_lerobot(folder, layouts.FILM, 16))


def check_imported(episodes: Episodes) -> None:
    """Fails unless the episodes are valid, and their last rows hold no action, reward or end."""
    check_valid(episodes)
    for key in ("actions", "rewards", "terminations", "truncations"):
        assert not episodes[key][episodes.offsets[1:] - 1].any(), f"{key}: not 0 in the row after the last step"


def make_configuration(name: str, folder: Path) -> None:
    """The file of a program's configuration, and all files that it takes its defaults from."""
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(CONFIGS / f"{name}.yaml", folder / f"{name}.yaml")
    for part in (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}).get("defaults", []):
        file = part if isinstance(part, str) else "/".join(*part.items())
        if (CONFIGS / f"{file}.yaml").is_file():  # other defaults stand in the code
            make_configuration(file, folder)


def read_configuration(name: str, folder: Path) -> None:
    """Load and check the configuration with the folder's files as the user's own."""
    cfg = load(name, [], folder)
    check_evaluation(cfg)
    check_training(cfg)


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "episodes": (make_episodes, read_episodes),
    "pipeline": (make_pipeline, read_pipeline),
    "damaged pipeline": (make_pipeline, read_damaged_pipeline),
    **{kind.__name__: (kind, read_dataset) for kind in layouts.KINDS},
    "films": (layouts.lerobot, read_films),
    **{f"{name} files": (partial(make_configuration, name), partial(read_configuration, name)) for name in PROGRAMS},
}


def option(chance: random.Random, names: list[str]) -> list[str]:
    """Random overrides of a configuration, many of them wrong."""
    words = []
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(names)
        if chance.random() < 0.2:
            place = chance.randrange(len(name))
            name = name[:place] + chance.choice(["", ".", "x", "[", "\\", " "]) + name[place + 1 :]
        words.append(
            chance.choice(["{}={}", "{}={}", "{}={}", "{}{}", "+{}={}", "~{}{}"]).format(name, chance.choice(WORDS))
        )
    return words


def read_options(overrides: list[str]) -> None:
    load("state", overrides)


def attempts(read: Callable[[Any], None], things: Sequence[Any]) -> Iterator[str]:
    """The outcome of reading each thing, in forks: "refused", "loaded", or the fault. A read that ends its fork is
    followed by a new fork."""
    left = list(things)
    while left:
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            gc.freeze()  # as `kills.begin`
            os.close(readable)
            try:
                _read_all(read, left, writable)
            finally:
                os._exit(1)
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            outcomes = [json.loads(line) for line in pipe.read().splitlines()]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if len(outcomes) < len(left):
            end = f"by signal {-status}" if status < 0 else f"with status {status}"
            outcomes.append(f"ended {end}: a hang or too much memory")
        left = left[len(outcomes) :]
        yield from outcomes


def _read_all(read: Callable[[Any], None], things: list[Any], pipe: int) -> None:
    """Write the outcome of each read into the pipe, as a line of JSON, and exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for thing in things:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)  # for a read that waits
        try:
            read(thing)
            outcome = "loaded"
        except InputError as error:
            outcome = "refused" if len(str(error)) < 4000 else f"an endless message: {str(error)[:200]}"
            if isinstance(error.__cause__, MemoryError):  # it allocated before it checked
                outcome = f"too much memory: {str(error)[:1000]}"
        except BaseException:
            outcome = traceback.format_exc()[-3000:]
        os.write(pipe, json.dumps(outcome).encode() + b"\n")
    os._exit(0)


def fuzz(name: str, count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Damage a target `count` times; counts of the outcomes, and the faults."""
    chance = random.Random(f"{name} {seed}")
    result: dict[str, Any] = {"target": name, "tried": 0, "refused": 0, "loaded": 0, "wrong": []}
    good, names = folder / "good", []
    read: Callable[[Any], None]
    if name == "options":
        read, names = read_options, sorted(_names(load("state", [])))
    else:
        good.mkdir(parents=True)
        make, read = TARGETS[name]
        make(good)
        read(good)
    while result["tried"] < count:
        tried: dict[str, Any] = {}  # the damage -> what is read
        for number in range(min(BATCH, count - result["tried"])):
            if name == "options":
                words = option(chance, names)
                tried[f"{number}: {words}"] = words
            else:
                damaged = folder / f"damaged_{number}"
                shutil.copytree(good, damaged, symlinks=True)
                tried[f"{number}: {spoil(damaged, chance)}"] = damaged
        for what, outcome in zip(tried, attempts(read, list(tried.values()))):
            if outcome in ("refused", "loaded"):
                result[outcome] += 1
            else:
                result["wrong"].append(f"{what}\n{outcome}")
                print(f"{name}: {what}\n{outcome}", file=sys.stderr, flush=True)
        result["tried"] += len(tried)
        for damaged in folder.glob("damaged_*"):
            shutil.rmtree(damaged)
    return result


def _names(config: Any, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        names.append(f"{prefix}{key}")
        if hasattr(config._get_node(key), "items"):
            names += _names(config._get_node(key), f"{prefix}{key}.")
    return names
