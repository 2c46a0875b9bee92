"""Downloads a file: an interrupted download continues, and the file gets its name only when it is whole."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from envs.datasets.readers.arrays import file_kind
from mpdiffuser.console import progress
from mpdiffuser.errors import InputError
from mpdiffuser.files import writing

BLOCK = 2**20
KINDS = {"npz": "npz", "hdf5": "HDF5"}


def download(url: str, file: str | Path, timeout: float = 60.0) -> Path:
    """Fetch an HDF5 or npz file, unless it exists.

    The bytes that have arrived are kept as FILE.partial; the next call asks only for the rest (HTTP Range).

    Args:
        timeout: seconds to wait for an answer.

    Raises:
        InputError: if the server refuses, breaks off, or sends something else; names address and file.
    """
    file = Path(file)
    if file.is_file():
        return file
    partial = file.with_name(file.name + ".partial")
    with writing(partial.parent):
        partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        expected = _fetch(url, partial, timeout)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise InputError(f"{url}: {error}; what has arrived of {file} is kept: the same command continues") from error
    found = partial.stat().st_size
    if expected is not None and found < expected:
        raise InputError(f"{url}: broke off, {found:,} of {expected:,} bytes of {file}: the same command continues")
    kind = "npz" if file.suffix == ".npz" else "hdf5"
    if (expected is not None and found > expected) or file_kind(partial) != kind:
        partial.unlink()
        raise InputError(f"{url}: sent {found:,} bytes that are not the {KINDS[kind]} file expected as {file}; removed")
    return partial.rename(file)


def _fetch(url: str, partial: Path, timeout: float) -> int | None:
    """Fetch what the partial file lacks; returns the size of the whole file, None where the server does not say."""
    begun = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and begun:  # nothing is left to fetch, or the server's file has changed
            total = (error.headers["Content-Range"] or "").rpartition("/")[2]
            return int(total) if total.isdigit() else None
        raise
    with answer:
        length = answer.headers["Content-Length"]
        resumed = answer.status == 206 and (answer.headers["Content-Range"] or "").startswith(f"bytes {begun}-")
        begun = begun if resumed else 0
        expected = begun + int(length) if length else None
        with (
            open(partial, "ab" if resumed else "wb") as out,
            progress(expected, partial.stem, begun, unit="B", unit_scale=True) as bar,
        ):
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
    return expected
