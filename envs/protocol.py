"""What an environment must offer: all that evaluation and `VectorEnv` ask of it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from envs.observations import Observation


class Environment(Protocol):
    """One environment, with Gymnasium's calls and four more: `peek`, `can_peek`, `get_physics` and `decision_seconds`.

    Actions are (m,) in the units and bounds of `action_space`, a Box; they are clipped to it. An observation is an
    array, or with "both" a dict of `frames` (height, width, 3) uint8 and `states` (o,) float32. The info of `reset` and
    `step` holds `physics` (p,), what `get_physics` gives, and `cost`, the cost of the step (0.0 where the environment
    has none). The info of `reset` may hold `goal`, an observation that the robot is to see.
    """

    @property
    def observation_space(self) -> spaces.Space: ...

    @property
    def action_space(self) -> spaces.Space: ...

    @property
    def decision_seconds(self) -> float | None:
        """Simulated seconds between two decisions; None: not known."""
        ...

    @property
    def can_peek(self) -> bool:
        """Whether the simulator's state can be restored, as `peek` needs it."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start an episode; returns its first observation and its info. seed None: the generator goes on."""
        ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Take one decision; returns observation, reward, terminated, truncated (not both) and info."""
        ...

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (K, ...) after each of the actions (K, m); the simulator is left exactly as it was.

        Only where `can_peek`.
        """
        ...

    def render(self) -> np.ndarray | None:
        """A picture of the present state, (height, width, 3) uint8; None where there is none."""
        ...

    def get_physics(self) -> np.ndarray:
        """The whole state of the simulator, (p,) float64; (0,) where it is not known."""
        ...

    def close(self) -> None: ...


class Environments(Protocol):
    """A batch of B environments, such as `envs.vector.VectorEnv`; arrays have B leading.

    An environment whose episode has ended ignores further steps: reward and cost are 0, the rest is as it was.
    """

    @property
    def num_envs(self) -> int: ...

    @property
    def single_observation_space(self) -> spaces.Space: ...

    @property
    def single_action_space(self) -> spaces.Space: ...

    @property
    def decision_seconds(self) -> float | None: ...

    @property
    def can_peek(self) -> bool: ...

    def reset(self, *, seed: Sequence[int]) -> tuple[Any, dict]:
        """Start an episode in every environment, with one seed each."""
        ...

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take one decision in every environment, actions (B, m); info holds `physics` (B, p) and `cost` (B,)."""
        ...

    def peek(self, actions: np.ndarray) -> Any:
        """Observations (B, K, ...) after each of the actions (B, K, m); the simulators are left as they were.

        Only where `can_peek`.
        """
        ...

    def render_first(self) -> np.ndarray | None:
        """A picture of the first environment, (height, width, 3) uint8; None where there is none."""
        ...

    def close(self) -> None: ...
