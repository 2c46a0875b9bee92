"""Shared by all tests: one thread, the same examples every time, and small datasets."""

import os
from collections.abc import Callable, Sequence

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

from mpdiffuser import engines
from mpdiffuser.episodes import Episodes

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def episodes_of(
    lengths: Sequence[int],
    latent_dim: int = 3,
    action_dim: int = 2,
    terminated: Sequence[int] = (),
    costs: bool = False,
    frame_size: int = 0,
    seed: int = 0,
) -> Episodes:
    """Episodes of random numbers with `lengths` steps; those in `terminated` terminate, others are truncated."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
    rows = int(offsets[-1])
    arrays: dict[str, np.ndarray] = {
        "observations": random.normal(size=(rows, latent_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    if costs:
        arrays["costs"] = random.uniform(size=rows).astype(np.float32)
    if frame_size:
        arrays["frames"] = random.integers(0, 256, (rows, frame_size, frame_size, 3), np.uint8)
    for e, end in enumerate(offsets[1:]):
        for key in ("actions", "rewards", "costs"):
            if key in arrays:
                arrays[key][end - 1] = 0
        arrays["terminations" if e in terminated else "truncations"][end - 2] = True
    return Episodes(arrays, offsets)


def randomized(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """The model with every trained parameter drawn anew: the denoisers are made with a last layer of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def make_episodes() -> Callable[..., Episodes]:
    return episodes_of


@pytest.fixture(scope="session")
def randomize() -> Callable[..., torch.nn.Module]:
    return randomized


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """engine=auto is torch in tests: compiling each small pipeline anew would take most of their time."""
    monkeypatch.setattr(engines, "FASTEST", ())
