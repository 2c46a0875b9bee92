"""What this machine is, and work on several of its cores."""

import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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


def side_by_side(jobs: Sequence[Callable[[], Any]], device: torch.device, processes: int = 1) -> list[Any]:
    """Results of jobs that do not depend on each other; on a CPU that one process has to itself a thread a core takes
    them, each with the caller's number of torch threads."""
    threads = torch.get_num_threads()
    workers = min(len(jobs), available_cores() // threads) if device.type == "cpu" and processes == 1 else 1
    if workers < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]
