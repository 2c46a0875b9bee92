"""Gymnasium's MuJoCo environments with the interface of `DMControlEnv`."""

import warnings
from typing import Any

import gymnasium
import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.observations import stack
from envs.physics import ActionScaling, get_state
from mpdiffuser.errors import InputError


class GymEnv(gymnasium.Wrapper):
    """A MuJoCo environment of gymnasium, observed by its states (o,) float32.

    Actions are Box(-1, 1), scaled to the environment's range and clipped to it.

    Args:
        env_id: such as "Hopper-v4".
        speed_limit: m/s; a step at which the robot moves faster (forwards; Ant: in any direction of the plane) costs 1,
            any other step 0, as in Safety-Gymnasium's velocity tasks. None: no step costs anything.
        observation: "states", the only one.
        size: pixels a side of `render`.

    Raises:
        InputError: for an unknown environment, one that is not MuJoCo's, or another observation.
    """

    def __init__(
        self, env_id: str, speed_limit: float | None = None, observation: str = "states", size: int = 256
    ) -> None:
        if observation != "states":
            raise InputError(f"observation={observation!r}: a gymnasium environment gives states only")
        if not isinstance(env_id, str) or ":" in env_id:  # gymnasium would import the module before the colon
            raise InputError(f"environment {env_id!r}: must be a name such as Hopper-v4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium calls -v4 out of date; D4RL's data fit -v4 and not -v5
            try:
                env = gymnasium.make(env_id, render_mode="rgb_array", width=size, height=size)
            except (gymnasium.error.Error, TypeError) as error:  # TypeError: it takes no width and height
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
        self._control = ActionScaling(space.low, space.high)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        assert env.observation_space.shape is not None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        observation, _ = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), {"physics": self.get_physics(), "cost": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:  # type: ignore[override]
        observation, reward, terminated, truncated, info = self.env.step(self._control(action))
        own = {"physics": self.get_physics(), "cost": self._cost(info)}
        return observation.astype(np.float32), float(reward), terminated, truncated and not terminated, own

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Observations (K, o) after each of the actions (K, m); the simulator is left exactly as it was.

        The simulator goes on after a fall, which would end the episode.
        """
        mujoco.mj_copyData(self._scratch, self.model, self.data)
        seen = [self.unwrapped.step(self._control(action))[0].astype(np.float32) for action in actions]
        mujoco.mj_copyData(self.data, self.model, self._scratch)
        return stack(seen)  # type: ignore[return-value]

    def get_physics(self) -> np.ndarray:
        """MuJoCo's full state, (p,) float64: see `envs.physics.get_state`."""
        return get_state(self.model, self.data)

    def _cost(self, info: dict[str, Any]) -> float:
        if self.speed_limit is None:
            return 0.0
        speed = np.hypot(info["x_velocity"], info["y_velocity"]) if self._planar else info["x_velocity"]
        return float(speed > self.speed_limit)
