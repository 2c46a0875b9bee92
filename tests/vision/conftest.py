"""Tiny encoders, their training, and episodes with frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mpdiffuser.episodes import Episodes
from mpdiffuser.record import PICTURE, TRUE_STATE, Actions, Observation, Record
from mpdiffuser.trainer import TrainConfig, Trainer
from vision.encoder import PixelEncoder

SIZE = 32


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of a tiny encoder."""
    return dict(backbone="conv", stride=8, pool=2, action_dim=2, latent_dim=4, projection=16, hidden=16)


@pytest.fixture
def episodes(make_episodes: Callable[..., Episodes]) -> Episodes:
    """Three episodes with frames of 32 pixels, and true states."""
    return make_episodes([6, 4, 5], frame_size=SIZE)


@pytest.fixture
def make_encoder(small: dict[str, Any]) -> Callable[..., PixelEncoder]:
    """A tiny untrained encoder."""

    def make(history: int = 3, seed: int = 0, **settings: Any) -> PixelEncoder:
        torch.manual_seed(seed)
        return PixelEncoder(**{**small, "history": history, **settings}).eval()

    return make


@pytest.fixture
def fit() -> Callable[..., Any]:
    """Train a model for a few steps."""

    def train(model: Any, data: Any, folder: Path, steps: int = 10, **settings: Any) -> Any:
        config = TrainConfig(**{"steps": steps, "batch_size": 8, "learning_rate": 3e-3, "warmup": 2, **settings})
        return Trainer("tiny", model, data, data, config, folder, Accelerator(cpu=True)).train()

    return train


@pytest.fixture
def make_pointer_episodes() -> Callable[..., Episodes]:
    """A bright square whose place is the state; the action moves it."""

    def make(count: int = 6, steps: int = 12) -> Episodes:
        random = np.random.default_rng(0)
        rows = count * (steps + 1)
        states, actions = np.zeros((rows, 2), np.float32), np.zeros((rows, 2), np.float32)
        frames, ends = np.zeros((rows, SIZE, SIZE, 3), np.uint8), np.zeros(rows, bool)
        for e in range(count):
            place = random.uniform(4, 24, 2)
            for t in range(steps + 1):
                row = e * (steps + 1) + t
                y, x = place.astype(int)
                frames[row, y : y + 5, x : x + 5] = 255
                states[row] = place
                if t < steps:
                    actions[row] = random.uniform(-1, 1, 2)
                    place = np.clip(place + 3 * actions[row], 0, SIZE - 6)
            ends[(e + 1) * (steps + 1) - 2] = True
        arrays = {"observations": states, "frames": frames, "actions": actions, "rewards": -states.sum(1) / 10}
        arrays |= {"terminations": np.zeros(rows, bool), "truncations": ends}
        seen = {"frames": Observation(PICTURE, (SIZE, SIZE, 3)), "observations": Observation(TRUE_STATE, (2,))}
        return Episodes(arrays, np.arange(count + 1) * (steps + 1), record=Record(seen, Actions.unit(2)))

    return make
