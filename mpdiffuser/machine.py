"""What this machine is, and work on several of its cores."""

import contextlib
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit this program was run from, with -dirty if files were changed since; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def side_by_side(jobs: Sequence[Callable[[], Any]], device: torch.device, processes: int = 1) -> list[Any]:
    """Results of jobs that do not depend on each other; on a CPU that one process has to itself a thread a core takes
    them, each with the caller's number of torch threads.

    The threads are daemons: a job that fails, or Ctrl-C, ends the program without waiting for the other jobs.
    """
    threads = torch.get_num_threads()
    workers = min(len(jobs), available_cores() // threads) if device.type == "cpu" and processes == 1 else 1
    if workers < 2:
        return [job() for job in jobs]
    todo = list(enumerate(jobs))[::-1]
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        torch.set_num_threads(threads)
        with contextlib.suppress(IndexError):  # nothing left; pop is atomic
            while True:
                done.put(attempt(*todo.pop()))

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    results: list[Any] = [None] * len(jobs)
    try:
        for _ in jobs:
            index, result, error = done.get()
            if error is not None:
                raise error
            results[index] = result
    finally:
        todo.clear()
    return results


def attempt(index: int, job: Callable[[], Any]) -> tuple[int, Any, BaseException | None]:
    """Index, result and error of a job."""
    try:
        return index, job(), None
    except BaseException as error:
        return index, None, error
