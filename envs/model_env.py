"""What our own environments around a MuJoCo model share."""

import gymnasium
import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.physics import get_state
from envs.rendering import Renderer


class ModelEnv(gymnasium.Env):
    """An environment of one MuJoCo model. A subclass has `reset`, `step`, `move` and `observe`.

    Args:
        model: the model; its first camera draws the pictures.
        picture: their height and width in px.
        decision_seconds: simulated seconds between two decisions.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    can_peek = True

    def __init__(self, model: mujoco.MjModel, picture: int, decision_seconds: float) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.render_mode, self.decision_seconds = "rgb_array", decision_seconds
        self._scratch, self._picture = mujoco.MjData(model), picture
        self._renderer: Renderer | None = None

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
