"""Uniform random actions."""

from collections.abc import Sequence

import numpy as np

from mpdiffuser.controller import Observations, Policy
from mpdiffuser.methods.base import Method, Setup


class RandomPolicy(Policy):
    """Uniform random actions (B, m).

    Args:
        low, high: their bounds, each (m,).
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = np.asarray(low, np.float64), np.asarray(high, np.float64)

    def reset(self, seeds: Sequence[int]) -> None:
        """Create one random generator for each seed."""
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """Sample actions (B, m); the observations have no effect."""
        return np.stack([g.uniform(self.low, self.high) for g in self.generators]).astype(np.float32)


class RandomActions(Method):
    """The lower reference in tables."""

    name = "random"
    label = "random actions"
    color = ("#8a8f98", "#9aa0a8")
    summary = "Actions drawn uniformly from their range."
    order = 0
    sees_states = True

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return a random policy within the environment's bounds; where it has none, within those of the data."""
        data = setup.pipeline.action_scale
        bounds = [data.low, data.high]
        if setup.action_space is not None:
            space = setup.action_space.low, setup.action_space.high
            bounds = [np.where(np.isfinite(own), own, seen) for own, seen in zip(space, bounds)]
        return RandomPolicy(*bounds)
