"""What our own environments around a MuJoCo model share."""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.physics import checked_action, get_state
from envs.rendering import Renderer
from mpdiffuser.errors import InputError


def check_choice(kind: str, name: str, found: Any, allowed: Iterable[str]) -> None:
    """Raise InputError unless an environment's argument is one of the allowed texts."""
    if found not in (choices := tuple(allowed)):
        raise InputError(f"{kind}: {name}: must be one of {', '.join(choices)}, found {found!r}")


class ModelEnv(gymnasium.Env):
    """An environment of one MuJoCo model. A subclass has `reset`, `step`, `move` and `observe`.

    Args:
        model: the model; its first camera draws the pictures.
        picture: their height and width in px.
        decision_seconds: simulated seconds between two decisions.
        largest: of the actions, (m,); the least is its negative.
        size: o, the number of an observation's entries.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    can_peek = True

    def __init__(
        self, model: mujoco.MjModel, picture: int, decision_seconds: float, largest: np.ndarray, size: int
    ) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.render_mode, self.decision_seconds = "rgb_array", decision_seconds
        self._scratch, self._picture = mujoco.MjData(model), picture
        self._renderer: Renderer | None = None
        self._largest, largest_float = np.asarray(largest, np.float64), np.asarray(largest, np.float32)
        self.action_space = spaces.Box(-largest_float, largest_float)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def clipped(self, action: np.ndarray) -> np.ndarray:
        """Return an action (m,) as float64 within its bounds.

        Raises:
            InputError: for another shape, or a number that is not finite.
        """
        return checked_action(action, self._largest.shape).clip(-self._largest, self._largest)

    def facts(self) -> dict[str, Any]:
        """Return what `reset` and `step` tell beside the observation."""
        return {"physics": self.get_physics(), "cost": 0.0}

    def move(self, action: np.ndarray) -> None:
        """Let the robot carry out the action (m,) for one decision."""
        raise NotImplementedError

    def observe(self) -> np.ndarray:
        """Return the observation (o,) float32."""
        raise NotImplementedError

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Return the observations (K, o) after each of the actions (K, m). The simulator is left as it was."""
        mujoco.mj_copyData(self._scratch, self.model, self.data)
        try:
            seen = [self._after(action) for action in actions]
        finally:
            mujoco.mj_copyData(self.data, self.model, self._scratch)
        return np.array(seen, np.float32).reshape(len(seen), *self.observation_space.shape)  # type: ignore[misc]

    def _after(self, action: np.ndarray) -> np.ndarray:
        self.move(action)
        return self.observe()

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A picture, (height, width, 3) uint8."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, self._picture)
        return self._renderer.render(self.data)

    def get_physics(self) -> np.ndarray:
        """MuJoCo's full state, (p,) float64."""
        return get_state(self.model, self.data)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
