"""The expert that the data were collected with."""

from collections.abc import Callable, Sequence

import numpy as np

from mpdiffuser.controller import Policy
from mpdiffuser.methods.base import Method, Setup


class ExpertPolicy(Policy):
    """Acts by a function of the true states: states (B, o) -> actions (B, m)."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def reset(self, seeds: Sequence[int]) -> None:
        """It has no memory."""

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        return self.function(observations)


class Expert(Method):
    """The highest sensible score of a table of pixel tasks."""

    name = "expert"
    label = "expert"
    color = ("#7a57a8", "#b497e0")
    summary = "The trained policy that the data collection builds on; it sees the true states."
    order = 100
    sees_states = True
    needs_expert = True

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        assert setup.expert is not None
        return ExpertPolicy(setup.expert)
