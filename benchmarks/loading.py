"""Windows a second, and the memory of datasets: python -m benchmarks.loading

Draws windows from a million transitions of states, as in the planner's training, and windows of 32 rows from 100,000
memory-mapped frames of 64 x 64 pixels. Memory is the growth of the process; of memory-mapped files it counts the pages
that were read, which the system can take back. The bound is the windows' bytes at the memory bandwidth that this run
measured.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.common import parse, parser, rates, report, timed
from benchmarks.limits import limits
from experiments.untrained import random_episodes
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.randomness import data_order
from mpdiffuser.windows import Windows, to_go

BATCH, HORIZON = 64, 32
STATES_LENGTH, FRAMES_LENGTH = 1000, 250  # steps of an episode


def resident_gib() -> float:
    return psutil.Process().memory_info().rss / 2**30


def states(steps: int, rate: float, repeats: int) -> dict[str, Any]:
    """A row: batches of windows of states, in the trainer's order."""
    before = resident_gib()
    episodes = random_episodes(max(1, steps // STATES_LENGTH), STATES_LENGTH, 11, 3)
    held = resident_gib()
    returns = to_go(episodes["rewards"], episodes, 0.99)[:, None]
    normalizers = Normalizer(11).fit(episodes["observations"]), Normalizer(3).fit(episodes["actions"])
    windows = Windows(episodes, returns, HORIZON, *normalizers, Marginals(1).fit(returns))
    ready, order = resident_gib(), iter(range(10**6))
    found = timed(lambda: windows.batch(data_order(len(windows), 0, next(order) * BATCH, BATCH)), repeats)
    size = sum(part.nbytes for part in windows.batch(torch.arange(BATCH)).values())
    memory = {"dataset GiB": held - before, "windows GiB": ready - held}
    return {"data": f"{steps:,} transitions of 11 + 3 numbers", **row(found, size, rate), **memory}


def pixels(steps: int, rate: float, repeats: int) -> dict[str, Any]:
    """A row: batches of windows of frames, from a folder on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        random_episodes(max(1, steps // FRAMES_LENGTH), FRAMES_LENGTH, frame_size=64).save(Path(folder) / "data")
        before = resident_gib()
        episodes = Episodes.load(Path(folder) / "data")
        held, random = resident_gib(), np.random.default_rng(0)

        def batch() -> np.ndarray:
            chosen = random.integers(len(episodes), size=BATCH)
            starts = episodes.offsets[chosen] + random.integers(0, FRAMES_LENGTH - HORIZON, BATCH)
            return episodes["frames"][starts[:, None] + np.arange(HORIZON)]

        found = timed(batch, repeats)
        memory = {"dataset GiB": held - before, "windows GiB": resident_gib() - held}
        return {"data": f"{steps:,} frames of 64 x 64", **row(found, batch().nbytes, rate), **memory}


def row(found: dict[str, float], size: int, rate: float) -> dict[str, Any]:
    """Columns of a timing of BATCH windows; the bound is to read and to write their `size` bytes at `rate` GB/s."""
    return rates(found, "windows", BATCH, 2 * size / rate / 1e6)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--transitions", type=int, default=1_000_000)
    options.add_argument(
        "--frames", type=int, default=100_000, help="the default takes 1.2 GB of the disk for a moment"
    )
    args = parse(options, arguments)
    if args.quick:
        args.transitions, args.frames = 5000, 500
    repeats = 5 if args.quick else 50
    measured = limits(args.quick)
    rate = measured["copy_gb_s"]
    report(args, "loading", [states(args.transitions, rate, repeats), pixels(args.frames, rate, repeats)], measured)


if __name__ == "__main__":
    main()
