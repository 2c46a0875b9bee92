"""Run independent jobs on several cores."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch

from mpdiffuser.machine import available_cores


def run_parallel(jobs: Sequence[Callable[[], Any]], device: torch.device, processes: int = 1) -> list[Any]:
    """Run independent jobs and return their results, in the order of the jobs.

    On a CPU with one process, the jobs run in parallel threads. Each thread uses the caller's number of torch threads,
    and all together use at most the available cores. Otherwise the jobs run one after the other. The threads are
    daemons: the program ends after a failed job or Ctrl-C without waiting for the other jobs.

    Args:
        jobs: functions without arguments.
        device: the device that the jobs use.
        processes: number of processes of the program.

    Raises:
        Exception: the exception of the first job that fails.
    """
    threads = torch.get_num_threads()
    workers = min(len(jobs), available_cores() // threads) if device.type == "cpu" and processes == 1 else 1
    if workers < 2:
        return [job() for job in jobs]
    todo = list(enumerate(jobs))[::-1]
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        torch.set_num_threads(threads)
        with contextlib.suppress(IndexError):  # no job is left; pop is atomic
            while True:
                done.put(_attempt(*todo.pop()))

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


def _attempt(index: int, job: Callable[[], Any]) -> tuple[int, Any, BaseException | None]:
    """Run a job and return its index, its result and its exception; None for the part that does not exist."""
    try:
        return index, job(), None
    except BaseException as error:
        return index, None, error
