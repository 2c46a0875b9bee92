"""The expert policy of the data collection."""

from collections.abc import Callable, Sequence

import numpy as np

from mpdiffuser.controller import Observations, Policy
from mpdiffuser.methods.base import Method, Setup


class ExpertPolicy(Policy):
    """A policy on true states, from a function: states (B, o) -> actions (B, m)."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def reset(self, seeds: Sequence[int]) -> None:
        """Do nothing, since the policy has no state."""

    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """States (B, o) -> actions (B, m) in [-1, 1]."""
        assert isinstance(observations, np.ndarray)
        return self.function(observations)


class Expert(Method):
    """The upper reference in tables of pixel tasks."""

    name = "expert"
    label = "expert"
    color = ("#7a57a8", "#b497e0")
    summary = "The trained policy that collects the data; it observes the true states."
    order = 100
    sees_states = True
    needs_expert = True

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return the data's expert."""
        assert setup.expert is not None
        return ExpertPolicy(setup.expert)
