"""Why a file cannot be read: damaged, locked, larger than the memory, not allowed. Each reason has its own error."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from mpdiffuser.errors import InputError

NOTICED = 2**20  # bytes; fewer are not compared with the free memory
LEAST = 2**26  # bytes; with less free memory, HDF5's decompression fails without saying why
DISK = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}
MORE_MEMORY = "close other programs, use a machine with more memory, or divide the data into several datasets"
NO_MEMORY = ("memory allocation failed", "unable to allocate", "can't allocate", "out of memory", "malloc")


@contextlib.contextmanager
def guard(file: str | Path) -> Iterator[None]:
    """Re-raises every exception of a parser as InputError: the name of the file, the reason, and what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{file}: {_told(file, error, reason)}") from error


def _told(file: str | Path, error: Exception, reason: str) -> str:
    text = str(error).lower()
    number = error.errno if isinstance(error, OSError) else None
    failed = "filter returned failure" in text and available_memory() < LEAST
    if isinstance(error, MemoryError) or number == errno.ENOMEM or failed or any(part in text for part in NO_MEMORY):
        return f"does not fit into the memory ({reason}); {MORE_MEMORY}"
    if isinstance(error, PermissionError):
        return f"no permission to read it ({error}); change its permissions"
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return (
            f"locked ({reason}): another program has it open for writing; wait until it has closed the file. "
            "If its disk knows no locks, set HDF5_USE_FILE_LOCKING=FALSE"
        )
    if "already open for write" in text:
        return (
            f"marked as open for writing ({reason}): a program is writing it, or stopped without closing it. "
            f"Wait for that program; if there is none, run h5clear -s {file}"
        )
    if number in DISK:
        return f"cannot be read ({error}); see whether its disk is there and works"
    return f"damaged or truncated ({reason}); get it again"


@contextlib.contextmanager
def enough_memory(what: object) -> Iterator[None]:
    """Re-raises a MemoryError of the block, which works on `what`, as InputError."""
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
    """Bytes that this process can still allocate: of the machine, of its container, and below `ulimit -v`."""
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
