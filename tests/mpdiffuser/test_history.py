"""The history of observations and actions, against a plain loop."""

import numpy as np
import pytest
import torch

from mpdiffuser.history import LatentHistory
from vision.encoder import IdentityEncoder


class Counting(IdentityEncoder):
    """An encoder whose latent is the sum of its features and ten times the sum of its actions, over a history of 3."""

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        assert features.shape[1] == 3 and actions.shape[1] == 2
        return features.sum(1) + 10 * actions.sum((1, 2))[:, None]


def test_the_history_by_a_plain_loop() -> None:
    """The first observation stands for the missing past, with actions of 0. Looking ahead changes nothing."""
    history = LatentHistory(Counting(1, 1, history=3))
    observations, actions = [[1.0], [2.0], [4.0], [8.0]], [[0.1], [0.2], [0.3], [0.4]]
    expected = [3.0, 1 + 1 + 2 + 10 * 0.1, 1 + 2 + 4 + 10 * 0.3, 2 + 4 + 8 + 10 * 0.5]
    for _ in range(2):
        history.reset()
        for observation, action, latent in zip(observations, actions, expected):
            assert history(np.array([observation], np.float32)).item() == pytest.approx(latent)
            future = history.encode_future(np.array([[[16.0], [32.0]]], np.float32), np.array([[[1.0], [2.0]]]))
            assert future.shape == (1, 2, 1)
            history.record_actions(np.array([action]))
        assert future[0, :, 0].tolist() == pytest.approx([4 + 8 + 16 + 10 * 1.3, 8 + 16 + 32 + 10 * 3.0])
