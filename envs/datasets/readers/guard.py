"""Why a file cannot be read: damaged, locked, larger than the memory, not allowed. Each reason has its own error."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from mpdiffuser.errors import InputError
from mpdiffuser.memory import MORE_MEMORY, available_memory

LEAST = 2**26  # bytes; with less free memory, HDF5's decompression fails without saying why
DISK = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}
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
