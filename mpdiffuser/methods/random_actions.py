"""Uniform random actions."""

from collections.abc import Sequence

import numpy as np

from mpdiffuser.controller import Observations, Policy
from mpdiffuser.methods.base import Method, Setup
from mpdiffuser.record import ActionScale


class RandomPolicy(Policy):
    """Uniform random actions (B, m) within the bounds of `scale`."""

    def __init__(self, scale: ActionScale) -> None:
        self.scale = scale

    def reset(self, seeds: Sequence[int]) -> None:
        """Create one random generator for each seed."""
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """Sample actions (B, m); the observations have no effect."""
        unit = np.stack([g.uniform(-1, 1, len(self.scale.low)) for g in self.generators]).astype(np.float32)
        return self.scale.clip(self.scale.to_data(unit))


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
        """Return a random policy for the pipeline's actions."""
        return RandomPolicy(setup.pipeline.action_scale)
