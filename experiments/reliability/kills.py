"""Kills: a job that is killed many times must end with the same files as a job that was never killed.

Half of the kills come at a random time; the others just before a random file operation, since a random time seldom lies
between two of them. A job runs in a fork, so that its start needs no imports.
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
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file  # noqa: F401  imported here, not in every fork

from envs.collect import collect
from envs.record import dm_control_record
from experiments.untrained import random_episodes
from mpdiffuser.config import load
from mpdiffuser.launch import Clock
from mpdiffuser.training import train_pipeline
from vision.data import cached_features
from vision.encoder import IdentityEncoder, PixelEncoder

Job = Callable[[Path], Any]
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
TINY = ["horizon=8", "rounds=2", "checkpoint_every=10", "ranker.hidden=16", "trackers=[]", "threads=1"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
PARTS = ("planner", "dynamics", "ranker", "cloning")


def training(folder: Path, steps: int = 40, options: Sequence[str] = ()) -> None:
    """Trains tiny models of a pipeline, and saves the pipeline folder."""
    overrides = [f"train.{part}.{key}" for part in PARTS for key in (f"steps={steps}", "batch_size=8")]
    cfg = load("state", [*TINY, *overrides, *options, f"output_dir={folder}"])
    encoder = IdentityEncoder(3, 2)
    info = {"task": "none", "data": "none"}
    train_pipeline(cfg, random_episodes(6, 20), encoder, None, Accelerator(cpu=True), Clock(), info)


def features(folder: Path) -> None:
    """Computes the cache of a frozen backbone's features."""
    torch.manual_seed(0)
    episodes = random_episodes(60, 69, frame_size=32)
    cached_features(PixelEncoder(backbone="conv").eval(), episodes, folder, batch=8)


def collection(folder: Path) -> None:
    """Collects a dataset from the simulator: three batches of short episodes."""
    task = {"name": "cartpole_swingup", "action_repeat": 4, "size": 16, "camera": 1}
    collect(dm_control_record(task, "fast", time_limit=1.0), "random", 40, 0, folder, processes=1)


JOBS: dict[str, Job] = {"training": training, "features": features, "collection": collection}


def contents(folder: Path) -> dict[str, str]:
    """Files of a folder and their checksums; logs count without their times."""
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
    """Fork a process that does the job and kills itself just before its file operation of this number.

    Its output, and the traceback of a crash, go into <folder>.log.

    Returns:
        The process's id.
    """
    child = os.fork()
    if child:
        return child
    gc.freeze()  # collecting the parent's garbage, such as OpenGL contexts, can hang or crash this process
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
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _output(folder: Path) -> str:
    """The end of the output of a job in this folder."""
    return _log(folder).read_text(errors="replace")[-4000:]


def finish(job: Job, folder: Path) -> None:
    """Do the job in a fork.

    Raises:
        RuntimeError: if it fails.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(begin(job, folder), 0)[1])
    if status:
        raise RuntimeError(f"{job.__name__} in {folder} ended with status {status}: {_output(folder)}")


def drill(job: Job, folder: Path, kills: int, seed: int = 0, operations: int = 60) -> dict[str, Any]:
    """Do a job without a kill, and again with `kills` kills.

    Args:
        operations: a kill at a file operation comes at one of the first `operations` after a start.

    Returns:
        The kills of each kind, and how often the job ended.

    Raises:
        RuntimeError: if the files differ, or a job fails.
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
            output = _output(folder / "killed")
            raise RuntimeError(f"{job.__name__}: after {killed} kills it ended with status {status}: {output}")
        else:  # it ended before its kill: begin again in an empty folder
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
