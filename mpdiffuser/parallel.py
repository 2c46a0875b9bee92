"""Independent jobs on several cores."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch

from mpdiffuser.machine import available_cores


def run_parallel(jobs: Sequence[Callable[[], Any]], device: torch.device, processes: int = 1) -> list[Any]:
    """Results of independent jobs. On a CPU with a single process, the jobs run in threads, one for each free core,
    with the caller's number of torch threads.

    The threads are daemons: a failed job, or Ctrl-C, ends the program without waiting for the other jobs.
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
    """Index, result and error of a job."""
    try:
        return index, job(), None
    except BaseException as error:
        return index, None, error
