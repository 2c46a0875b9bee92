"""Makes the episodes of a dataset in several processes, each in a file of its own, so that a run goes on."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from envs.datasets.readers.vd4rl import ABOUT
from mpdiffuser.console import progress
from mpdiffuser.errors import InputError
from mpdiffuser.files import claim, read_json, write_whole
from mpdiffuser.machine import available_cores


def make_files(
    folder: Path,
    about: Mapping[str, Any],
    names: Sequence[str],
    write: Callable[[int, Path], Any],
    title: str,
    unit: str = "episode",
) -> list[Path]:
    """Make the files of a folder that are not there yet, and claim the folder for this process.

    Args:
        folder: of the unfinished dataset.
        about: what the files depend on; it is written to about.json.
        names: of the files, one for each episode.
        write: called in another process with an episode's number and file.
        title, unit: of the progress bar. unit: what is in a file.

    Returns:
        All files.

    Raises:
        InputError: if the folder is part of another dataset, or another process works there.
    """
    _start_or_resume(folder, about)
    files = [folder / name for name in names]
    left = [number for number, file in enumerate(files) if not file.exists()]
    with pool(len(left)) as workers, progress(len(files), title, len(files) - len(left), unit=unit) as bar:
        for _ in workers.map(write, left, [files[number] for number in left]):
            bar.update(1)
    return files


def pool(jobs: int) -> ProcessPoolExecutor:
    """Return a pool of one process for each core, at most `jobs`. They end when this process ends or is killed."""
    workers = max(1, min(available_cores(), jobs))
    return ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent, (os.getpid(),))


def _start_or_resume(folder: Path, about: Mapping[str, Any]) -> None:
    claim(folder, "wait for it, or choose another path")
    if (folder / ABOUT).exists():
        found = read_json(folder / ABOUT)
        differ = [key for key, value in json.loads(json.dumps(about)).items() if found.get(key) != value]
        if differ:
            raise InputError(
                f"{folder}: holds a part of another dataset ({', '.join(differ)}); remove it, or choose another path"
            )
    elif any(folder.glob("*.npz")):
        raise InputError(f"{folder}: holds other files; remove it, or choose another path")
    write_whole(folder / ABOUT, json.dumps(about))


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, also if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
