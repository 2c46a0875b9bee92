"""Processes that make the episodes of a dataset, which do not depend on each other."""

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from mpdiffuser.machine import available_cores


def pool(jobs: int) -> ProcessPoolExecutor:
    """Return a pool of one process for each core, at most `jobs`. They end when this process ends or is killed."""
    workers = max(1, min(available_cores(), jobs))
    return ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent, (os.getpid(),))


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, also if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
