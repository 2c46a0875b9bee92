"""Atomic writes of files and folders, manifests that detect damaged folders, and folder locks."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mpdiffuser.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "mpdiffuser-folder"
VERSION = 1
LARGEST_JSON = (
    16 * 2**20
)  # bytes; larger than every JSON file of this project, also than a meta.json with a line for each episode
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "the system limits the size of files (ulimit -f)",
    errno.ENOMEM: "the memory of this process is limited (ulimit -v), to which memory-mapped files count",
    errno.EROFS: "it is read-only; choose another folder",
    errno.EACCES: "you may not write there; choose another folder or change its permissions",
    errno.EPERM: "you may not write there; choose another folder or change its permissions",
}


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Re-raise OS errors of the block, which writes `what`, as InputError with advice."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno or 0 if isinstance(error, OSError) else _number(str(error))
        advice = ADVICE.get(number, "choose another folder")
        raise InputError(f"{what}: cannot be written ({error}); {advice}; complete files are unchanged") from error


def _number(message: str) -> int:
    """Return the OS error number in a message of safetensors such as "... (os error 28)"; 0 without one.

    safetensors raises its own exception for an OS error, not an OSError.
    """
    found = re.search(r"os error (\d+)", message)
    return int(found[1]) if found else 0


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Context manager: gives a binary file to write, which replaces `file` atomically at the end.

    After a crash `file` is the old one or the new one.
    """
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as handle:
        yield handle
    _sync(partial)
    partial.replace(file)
    _sync(file.parent)


def write_whole(file: Path, text: str) -> None:
    """Replace the text of a file atomically."""
    with replacing(file) as handle:
        handle.write(text.encode())


def publish(partial: Path, final: Path) -> None:
    """Write the content of a finished folder to the disk, then rename it. An existing folder `final` is replaced."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(final.with_name(final.name + ".old"), ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(files: Iterable[str | Path]) -> str:
    """Return 16 hex digits that change when the path, the size or the time of a file changes."""
    about = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in map(Path, files)]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def create_array(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Create a writable, memory-mapped .npy file of zeros and reserve its disk space.

    Without the reservation a full disk would raise SIGBUS at a later write.

    Raises:
        InputError: if the disk does not have enough space.
    """
    file.unlink(missing_ok=True)  # not truncated: a thread that still writes to the old array would get SIGBUS
    try:
        array = np.lib.format.open_memmap(file, "w+", np.dtype(dtype), shape)
        with open(file, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
        raise InputError(
            f"{file}: no space for {file.stem}: {needed / 1e9:.3f} GB needed, {free / 1e9:.3f} GB free ({error}); "
            "free some space or set data_root="
        ) from error
    return array


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: if the file is missing, too large, or not a JSON object.
    """
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise InputError(f"{file}: larger than {LARGEST_JSON:,} bytes, more than any file of this project")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: must hold a JSON object, found a {type(found).__name__}")
    return found


def write_manifest(folder: Path) -> None:
    """Write the size and SHA-256 of every file of a folder into its manifest.json, for `check_manifest`."""
    text = json.dumps({"format": FORMAT, "version": VERSION, "files": _contents(folder)})
    with writing(folder / MANIFEST):
        write_whole(folder / MANIFEST, text)


def check_manifest(folder: Path, remedy: str) -> None:
    """Check that a folder has exactly the files of its manifest, and no links.

    Args:
        folder: the folder.
        remedy: advice for the error message.

    Raises:
        InputError: if a file is missing, changed, unexpected or a link. The message names the first such file.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: {MANIFEST} is missing: half-written, or of an older version; {remedy}")
    manifest = read_json(folder / MANIFEST)
    found = {"format": manifest.get("format"), "version": manifest.get("version")}
    if found != {"format": FORMAT, "version": VERSION} or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{folder / MANIFEST}: must be {FORMAT} {VERSION}, found {found}; {remedy}")
    noted, there = manifest["files"], _contents(folder)
    for name in sorted({*noted, *there}):
        if noted.get(name) != there.get(name):
            raise InputError(
                f"{folder / name}: {there.get(name, 'missing')}, but {MANIFEST} says "
                f"{noted.get(name, 'no such file')}; {remedy}"
            )


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    contents = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise InputError(f"{file}: a link or special file, which may lead anywhere; remove it")
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in (MANIFEST, f"{MANIFEST}.partial"):
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            contents[name] = {"bytes": file.stat().st_size, "sha256": digest}
    return contents


_held: dict[Path, FileLock] = {}  # the references keep the locks; a lock without a reference is released


def claim(folder: Path, remedy: str) -> None:
    """Create a folder if it is missing, and lock it until `release` or the end of this process.

    Args:
        folder: the folder.
        remedy: advice for the error message.

    Raises:
        InputError: if another process has the lock, or the folder cannot be created.
    """
    name = folder.absolute()
    if name in _held:
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(name / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{folder}: another process is working there; {remedy}") from error
    _held[name] = lock


def claimed(folder: Path) -> bool:
    """Return whether another process has claimed a folder."""
    lock = folder.absolute() / ".lock"
    if folder.absolute() in _held or not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the folder has just got its final name
        return False


def release(folder: Path) -> None:
    """Unlock a folder."""
    _held.pop(folder.absolute()).release()
