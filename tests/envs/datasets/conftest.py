"""Recordings to be read, and cache folders of each test's own."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest


def transitions_of(rows: int = 12, width: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a flat file: one episode of 5 steps that terminates, and one that is cut off at the end."""
    random = np.random.default_rng(seed)
    return {
        "observations": random.normal(size=(rows, width)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.arange(rows) == 4,
        "timeouts": np.arange(rows) == rows - 1,
    }


@pytest.fixture
def transitions() -> Callable[..., dict[str, np.ndarray]]:
    return transitions_of


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a flat HDF5 file; arrays can be replaced, or left out with None."""

    def write_file(file: Path, **replaced: np.ndarray | None) -> Path:
        with h5py.File(file, "w") as data:
            for key, array in (transitions_of() | replaced).items():
                if array is not None:
                    data[key] = array
        return file

    return write_file


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("D4RL_DATASET_DIR", "DSRL_DATASET_DIR", "OGBENCH_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
