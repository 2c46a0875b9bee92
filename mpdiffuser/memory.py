"""The memory that is free, and errors for what does not fit into it."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from mpdiffuser.errors import InputError

NOTICED = 2**20  # bytes; fewer are not compared with the free memory
MORE_MEMORY = "close other programs, use a machine with more memory, or divide the data into several datasets"


@contextlib.contextmanager
def enough_memory(what: object) -> Iterator[None]:
    """Re-raise a MemoryError of the block, which works on `what`, as InputError."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{what}: does not fit into the memory ({error}); {MORE_MEMORY}") from error


def check_memory(file: str | Path, key: str, needed: int) -> None:
    """Raise InputError if more bytes are needed than are free. Without it the system would end the program."""
    if needed > NOTICED and needed > (free := available_memory()):
        raise InputError(
            f"{file}: {key}: needs {needed / 1e9:.3f} GB of memory, {free / 1e9:.3f} GB are free; {MORE_MEMORY}"
        )


def available_memory() -> float:
    """Return the bytes that this process can still allocate: of the machine, its container, and below `ulimit -v`."""
    return min(_of_machine(), _of_container(), _of_process())


def _of_machine() -> float:
    facts = dict(line.split(":") for line in _lines("/proc/meminfo") if ":" in line)
    kilobytes = [int(facts[key].split()[0]) for key in ("MemAvailable", "SwapFree") if key in facts]
    return 1024.0 * sum(kilobytes) if "MemAvailable" in facts else float("inf")


def _of_container() -> float:
    root = "/sys/fs/cgroup"
    limit, used = (_lines(f"{root}/memory.{name}") for name in ("max", "current"))
    if not (limit and used and limit[0].isdigit() and used[0].isdigit()):
        return float("inf")
    facts = dict(line.split() for line in _lines(f"{root}/memory.stat") if len(line.split()) == 2)
    return int(limit[0]) - int(used[0]) + int(facts.get("inactive_file", 0))


def _of_process() -> float:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _lines("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not pages:
        return float("inf")
    return limit - int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:  # another system
        return []
