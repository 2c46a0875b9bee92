"""Windows a second, and the memory of datasets: python -m benchmarks.loading

A million transitions of states as the planner is trained on them, and 100,000 frames of 64 x 64 pixels in a dataset's
folder, memory-mapped, of which windows of 32 rows are drawn. Memory: what the process holds more than before; of mapped
files only what it touched, which the system may take back. The bound: the windows' bytes at the memory bandwidth that
this run measured.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.limits import episodes_of, limits, parser, report, timed
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.trainer import data_order
from mpdiffuser.windows import Windows, to_go

BATCH, HORIZON = 64, 32


def resident_gib() -> float:
    return psutil.Process().memory_info().rss / 2**30


def states(steps: int, rate: float, repeats: int) -> dict[str, Any]:
    """A row: batches of windows of states, in the trainer's order."""
    before = resident_gib()
    episodes = episodes_of(steps)
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
        episodes_of(steps, length=250, size=64).save(Path(folder) / "data")
        before = resident_gib()
        episodes = Episodes.load(Path(folder) / "data")
        held, random = resident_gib(), np.random.default_rng(0)

        def batch() -> np.ndarray:
            chosen = random.integers(len(episodes), size=BATCH)
            starts = episodes.offsets[chosen] + random.integers(0, 250 - HORIZON, BATCH)
            return episodes["frames"][starts[:, None] + np.arange(HORIZON)]

        found = timed(batch, repeats)
        memory = {"dataset GiB": held - before, "windows GiB": resident_gib() - held}
        return {"data": f"{steps:,} frames of 64 x 64", **row(found, batch().nbytes, rate), **memory}


def row(found: dict[str, float], size: int, rate: float) -> dict[str, Any]:
    bound = 2 * size / rate / 1e6
    return {
        **found,
        "windows a second of a core": 1e3 * BATCH / found["cpu_ms"],
        "bound ms": bound,
        "times the bound": found["cpu_ms"] / bound,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--transitions", type=int, default=1_000_000)
    options.add_argument("--frames", type=int, default=100_000, help="1.2 GB for a moment on the disk")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.quick:
        args.transitions, args.frames = 5000, 500
    repeats = 5 if args.quick else 50
    measured = limits(args.quick)
    rate = measured["copy_gb_s"]
    report(args, "loading", [states(args.transitions, rate, repeats), pixels(args.frames, rate, repeats)], measured)


if __name__ == "__main__":
    main()
