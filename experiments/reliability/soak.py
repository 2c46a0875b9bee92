"""Soak: a controller runs for long. Its memory, file descriptors and processor time a decision must not grow.

The size of the batches changes, resets come at random times, and one state in a hundred is not finite.
"""

import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from experiments.untrained import small_pipeline
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, Record

MANY = 1000  # environments of the one large batch
BATCHES = (1, 4, 16, 64)
EVERY = 10.0  # seconds between two measurements
GROWTH, SLACK, DESCRIPTORS = 1.05, 20e6, 8  # memory of the second half may be 5 % and 20 MB above that of the first
WARM_UP = 0.2  # share of the time before the first measurement: pools and caches fill


def observations(record: Record, batch: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random observations (batch, ...) as the record says; one in a hundred states is not finite."""
    found = {}
    for name, each in record.observations.items():
        shape = (batch, *each.shape)
        if each.kind == PICTURE:
            found[name] = random.integers(0, 256, shape, np.uint8)
        else:
            found[name] = random.normal(size=shape).astype(np.float32)
            found[name][random.random(batch) < 0.01] = np.nan
    return found


def check(record: Record, actions: np.ndarray, batch: int) -> None:
    """Raises RuntimeError unless all actions are finite and within the record's bounds."""
    within = len(actions) == batch and np.isfinite(actions).all()
    if not within or (record.actions.scale().clip(actions) != actions).any():
        raise RuntimeError(f"actions of {batch} environments: found {actions}")


def many(controller: Controller, record: Record) -> dict[str, float]:
    """One decision for MANY environments: its seconds, and how much its peak memory exceeds the memory before."""
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    controller.reset(range(MANY))
    check(record, controller.act(observations(record, MANY, np.random.default_rng(0))), MANY)
    grown = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # Linux counts it in kB
    return {"environments": MANY, "seconds": round(time.perf_counter() - began, 2), "peak_mb": round(grown / 1e6)}


def opened(folder: str | None) -> tuple[MPDiffuserPipeline, Record]:
    """Return the pipeline of a folder, or a small untrained one, and its record."""
    pipeline = MPDiffuserPipeline.from_pretrained(Path(folder)) if folder else small_pipeline()
    if pipeline.record is None:
        raise InputError(f"{folder}: info.record is missing: its observations are not known")
    return pipeline, pipeline.record


def soak(minutes: float, folder: str | None = None, every: float = EVERY, seed: int = 0) -> dict[str, Any]:
    """Run a controller for `minutes`.

    Args:
        folder: of a pipeline; None: a small untrained one on states.
        every: seconds between two measurements.

    Returns:
        Counts, and the medians of memory, descriptors and time in the first and the second half.
    """
    pipeline, record = opened(folder)
    config = pipeline.sampler_defaults
    controller = Controller(pipeline, replace(config, warm_start=config.levels // 2))
    random, process = np.random.default_rng(seed), psutil.Process()
    totals = {"decisions": 0, "environment decisions": 0, "resets": 0, "fallbacks": 0}
    samples: list[tuple[int, int, float]] = []
    large = many(controller, record)
    warnings.simplefilter("ignore")
    began, due = time.perf_counter(), 60 * minutes * WARM_UP
    while (passed := time.perf_counter() - began) < 60 * minutes:
        batch = int(random.choice(BATCHES))
        controller.reset(random.integers(2**31, size=batch).tolist())
        totals["resets"] += 1
        for _ in range(random.integers(1, 50)):
            check(record, controller.act(observations(record, batch, random)), batch)
            totals["decisions"] += 1
            totals["environment decisions"] += batch
        totals["fallbacks"] += controller.fallbacks
        if passed > due:
            samples.append((process.memory_info().rss, process.num_fds(), _decision_ms(controller, record)))
            due = passed + every
    return {"minutes": minutes, **totals, "large batch": large, "threads": torch.get_num_threads(), **drift(samples)}


def _decision_ms(controller: Controller, record: Record, repeats: int = 20) -> float:
    """Median milliseconds of processor time of a decision for 4 environments; wall time would depend on other
    programs."""
    controller.reset(range(4))
    times = []
    for step in range(repeats):
        seen = observations(record, 4, np.random.default_rng(step))
        began = time.process_time()
        controller.act(seen)
        times.append(1e3 * (time.process_time() - began))
    return float(np.median(times))


def drift(samples: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Medians of memory, descriptors and time in the first and in the second half of the samples.

    Raises:
        RuntimeError: if memory or the number of descriptors grows.
    """
    if len(samples) < 4:
        return {"samples": len(samples)}
    halves = np.array(samples[: len(samples) // 2]), np.array(samples[len(samples) // 2 :])
    first, second = (np.median(half, 0) for half in halves)
    found: dict[str, Any] = {
        "samples": len(samples),
        "memory_mb": [round(first[0] / 1e6, 1), round(second[0] / 1e6, 1)],
        "descriptors": [int(first[1]), int(second[1])],
    }
    if second[0] > GROWTH * first[0] + SLACK or second[1] > first[1] + DESCRIPTORS:
        raise RuntimeError(f"memory or descriptors grow: {found}")
    return found if len(first) < 3 else found | {"decision_ms": [round(first[2], 2), round(second[2], 2)]}
