"""Kills: a job that is killed again and again ends with the very files of one that never was.

Half of the kills come at a random time; the others at a random file operation, just before it is done, since a moment
between two of them is what the clock would seldom hit. A job runs in a fork, so a start costs no imports.
"""

import faulthandler
import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file  # noqa: F401  imported here, not in every fork

from envs.collect import collect
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.training import Clock, train_pipeline
from vision.data import cached_features
from vision.encoder import IdentityEncoder, PixelEncoder

Job = Callable[[Path], Any]
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
TINY = ["horizon=8", "rounds=2", "checkpoint_every=10", "ranker.hidden=16", "trackers=[]", "threads=1"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
PARTS = ("planner", "dynamics", "ranker", "cloning")


def episodes_of(count: int = 6, steps: int = 20, frame_size: int = 0) -> Episodes:
    """Episodes of random numbers, the same each time."""
    random_numbers, rows = np.random.default_rng(0), count * (steps + 1)
    offsets = np.arange(count + 1) * (steps + 1)
    ends = np.zeros(rows, bool)
    ends[offsets[1:] - 2] = True
    arrays = {
        "observations": random_numbers.normal(size=(rows, 3)).astype(np.float32),
        "actions": random_numbers.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": random_numbers.normal(size=rows).astype(np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": ends,
    }
    if frame_size:
        arrays["frames"] = random_numbers.integers(0, 256, (rows, frame_size, frame_size, 3), np.uint8)
    return Episodes(arrays, offsets)


def training(folder: Path, steps: int = 40) -> None:
    """All models of a pipeline, tiny, and the pipeline folder."""
    overrides = [f"train.{part}.{key}" for part in PARTS for key in (f"steps={steps}", "batch_size=8")]
    cfg = load("state", [*TINY, *overrides, f"output_dir={folder}"])
    encoder = IdentityEncoder(3, 2)
    train_pipeline(cfg, episodes_of(), encoder, None, Accelerator(cpu=True), Clock(), {"task": "none", "data": "none"})


def features(folder: Path) -> None:
    """The cache of a frozen backbone's features."""
    torch.manual_seed(0)
    episodes = episodes_of(count=60, steps=69, frame_size=32)
    cached_features(PixelEncoder(backbone="conv").eval(), episodes, folder, batch=8)


def collection(folder: Path) -> None:
    """A dataset from the simulator: three batches of short episodes."""
    collect(quality="random", episodes=40, data_root=folder, size=16, time_limit=1.0, processes=1)


JOBS: dict[str, Job] = {"training": training, "features": features, "collection": collection}


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, with its checksum; logs without the times in them."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name.endswith(".lock"):
            continue
        data = file.read_bytes()
        if file.name == "log.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]).encode()
        found[file.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def begin(job: Job, folder: Path, operation: int | None = None) -> int:
    """Fork a process that does the job, and kills itself just before its file operation of this number; its id.

    What it prints, and where it was if it crashes, goes into <folder>.log.
    """
    child = os.fork()
    if child:
        return child
    gc.freeze()  # the parent's garbage, OpenGL contexts in it, can hang or crash a process that did not make them
    log = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable(log)
    done = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in OPERATIONS and str(folder) in str(arguments[0]):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.addaudithook(count)
        job(folder)
        status = 0
    finally:
        os._exit(status)


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _said(folder: Path) -> str:
    """The end of what a job in this folder printed."""
    return _log(folder).read_text(errors="replace")[-4000:]


def finish(job: Job, folder: Path) -> None:
    """Do the job in a fork.

    Raises:
        RuntimeError: if it fails.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(begin(job, folder), 0)[1])
    if status:
        raise RuntimeError(f"{job.__name__} in {folder} ended with status {status}: {_said(folder)}")


def drill(job: Job, folder: Path, kills: int, seed: int = 0, operations: int = 60) -> dict[str, Any]:
    """Do a job twice, once without a kill and once with so many; what happened, and where the files differ.

    Args:
        operations: kills at a file operation come at one of the first so many after a start.
    """
    moments = random.Random(seed)
    began = time.perf_counter()
    finish(job, folder / "whole")
    seconds = time.perf_counter() - began
    killed, runs = {"time": 0, "operation": 0}, 0
    while sum(killed.values()) < kills:
        kind = ("time", "operation")[runs % 2]
        child = begin(job, folder / "killed", moments.randint(1, operations) if kind == "operation" else None)
        if kind == "time":
            time.sleep(moments.uniform(0, seconds / 2))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        runs += 1
        if status == -signal.SIGKILL:
            killed[kind] += 1
        elif status:
            said = _said(folder / "killed")
            raise RuntimeError(f"{job.__name__}: after {killed} kills it ended with status {status}: {said}")
        else:  # it came to its end: begin anew elsewhere, so that kills still find something to stop
            _check(folder)
            (folder / "killed").rename(folder / f"killed_{runs}")
    finish(job, folder / "killed")
    _check(folder)
    return {"job": job.__name__, "kills": killed, "finished": 1 + len(list(folder.glob("killed_*")))}


def _check(folder: Path) -> None:
    whole, other = contents(folder / "whole"), contents(folder / "killed")
    differ = [name for name in sorted({*whole, *other}) if whole.get(name) != other.get(name)]
    if differ:
        raise RuntimeError(f"{folder / 'killed'}: these files are not those of a run without kills: {differ}")
