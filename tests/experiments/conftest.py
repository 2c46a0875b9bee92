"""Untrained pipelines for two robots; hopper's falls over at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpdiffuser.pipeline import MPDiffuserPipeline


def info_of(task: str, env_id: str) -> dict[str, Any]:
    environment = {"kind": "gymnasium", "env_id": env_id, "speed_limit": None}
    return {
        "task": task,
        "data": "abc",
        "environment": environment,
        "file": "f.hdf5",
        "suite": "d4rl",
        "stand_in": True,
    }


@pytest.fixture
def hopper(make_pipeline: Callable[..., MPDiffuserPipeline]) -> Callable[[int], MPDiffuserPipeline]:
    """Seed -> an untrained pipeline for Hopper."""
    return lambda seed: make_pipeline(11, 3, seed=seed, levels=100, info=info_of("hopper", "Hopper-v4"))


@pytest.fixture
def halfcheetah(make_pipeline: Callable[..., MPDiffuserPipeline]) -> MPDiffuserPipeline:
    """An untrained pipeline for HalfCheetah that draws with two levels of ddpm."""
    info = info_of("halfcheetah", "HalfCheetah-v4")
    return make_pipeline(17, 6, levels=100, info=info, sampler={"solver": "ddpm", "steps": 2, "target": 0.7})


@pytest.fixture
def hopper_data(tmp_path: Path) -> Path:
    """A folder with a file of the layout of D4RL's hopper-medium."""
    random, rows = np.random.default_rng(0), 300
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "hopper-medium.hdf5", "w") as file:
        file["observations"] = random.normal(size=(rows, 11)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = random.uniform(size=rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 30 == 29
    return tmp_path / "data"
