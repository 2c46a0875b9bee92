"""Gymnasium's MuJoCo environments with the interface of `DMControlEnv`."""

import warnings
from typing import Any

import gymnasium
import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.simulator import _STATE_KINDS, _get_state, stack
from mpdiffuser.errors import InputError


class GymEnv(gymnasium.Wrapper):
    """A MuJoCo environment of gymnasium, observed by its states; its actions are taken to be [-1, 1] of its range.

    Args:
        env_id: such as "Hopper-v4".
        speed_limit: a step at which the robot is faster (m/s, forwards; Ant: in the plane) has
            info["cost"] = 1, others 0, as in Safety-Gymnasium's velocity tasks. None: no costs.
        size: pixels a side of `render`.

    Raises:
        InputError: for an unknown environment, or one that is not MuJoCo's.
    """

    def __init__(self, env_id: str, speed_limit: float | None = None, size: int = 256) -> None:
        if not isinstance(env_id, str) or ":" in env_id:  # gymnasium would import what stands before the colon
            raise InputError(f"environment {env_id!r}: must be a name such as Hopper-v4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # -v4 is "out of date", and equals D4RL's data, which -v5 does not
            try:
                env = gymnasium.make(env_id, render_mode="rgb_array", width=size, height=size)
            except (gymnasium.error.Error, TypeError) as error:  # TypeError: it draws no pictures of a size
                raise InputError(f"environment {env_id!r}: {error}") from error
        super().__init__(env)
        if not isinstance(getattr(self.unwrapped, "data", None), mujoco.MjData):
            raise InputError(f"environment {env_id!r}: not one of MuJoCo's")
        self.model, self.data = self.unwrapped.model, self.unwrapped.data  # type: ignore[attr-defined]
        self.decision_seconds = round(float(self.unwrapped.dt), 9)  # type: ignore[attr-defined]
        self.speed_limit, self._planar = speed_limit, env_id.startswith("Ant")
        self._scratch = mujoco.MjData(self.model)
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self._center, self._half_range = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        assert env.observation_space.shape is not None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        observation, _ = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), {"physics": self.get_physics(), "cost": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:  # type: ignore[override]
        observation, reward, terminated, truncated, info = self.env.step(self._control(action))
        mine = {"physics": self.get_physics(), "cost": self._cost(info)}
        return observation.astype(np.float32), float(reward), terminated, truncated and not terminated, mine

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Observations (K, o) after each of the actions (K, m); the simulator is left exactly as it was.

        After a fall it goes on, as the simulator does when nobody looks.
        """
        mujoco.mj_copyData(self._scratch, self.model, self.data)
        seen = [self.unwrapped.step(self._control(action))[0].astype(np.float32) for action in actions]
        mujoco.mj_copyData(self.data, self.model, self._scratch)
        return stack(seen)  # type: ignore[return-value]

    def get_physics(self) -> np.ndarray:
        """MuJoCo's full state, as `DMControlEnv.get_physics`."""
        return np.concatenate([_get_state(self.model, self.data, kind) for kind in _STATE_KINDS])

    def _control(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise InputError(f"action {action}: must be {self.action_space.shape} finite numbers")
        return self._center + self._half_range * np.clip(action, -1, 1)

    def _cost(self, info: dict[str, Any]) -> float:
        if self.speed_limit is None:
            return 0.0
        speed = np.hypot(info["x_velocity"], info["y_velocity"]) if self._planar else info["x_velocity"]
        return float(speed > self.speed_limit)
