"""Environments of gymnasium, registered ones and the user's own, with the interface of `DMControlEnv`."""

import difflib
import importlib
import operator
import os
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from envs.observations import Observation, Observed, stack
from envs.physics import checked_action, get_state
from envs.rendering import Renderer
from mpdiffuser.errors import InputError

OBSERVATIONS = ("frames", "states", "both")
PICTURE = 160  # px a side of a rendered picture
HARMLESS = (TimeLimit, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics)
WHOLE = ""  # name of an observation that is no Dict


def make_registered(env_id: str, speed_limit: float | None = None, observation: Observed = "states") -> "GymEnv":
    """An environment that is registered with gymnasium.

    Args:
        env_id: such as "Hopper-v4".
        speed_limit: see `MujocoEnv`.
        observation: see `GymEnv`.

    Raises:
        InputError: for an unknown environment, one that cannot be made, or one that does not fit `GymEnv`.
    """
    where = f"environment {env_id!r}"
    if ":" in env_id:  # gymnasium would import the module before the colon
        raise InputError(f"{where}: must be a name such as Hopper-v4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium calls -v4 out of date; D4RL's data fit -v4 and not -v5
        try:
            env = gymnasium.make(env_id, disable_env_checker=True)
        except Exception as error:  # each environment has its own: missing packages, missing arguments
            raise InputError(f"{where}: {error}") from error
    if type(env.unwrapped).__module__.startswith("gymnasium.envs.mujoco."):
        return MujocoEnv(env, where, observation, speed_limit)
    if speed_limit is not None:
        raise InputError(f"{where}: speed_limit: only gymnasium's MuJoCo environments have one, found {speed_limit}")
    return GymEnv(env, where, observation)


def make_own(factory: str, observation: Observed = "states") -> "GymEnv":
    """The environment that the user's factory returns.

    Args:
        factory: package.module:factory, a callable without arguments. The module is searched on the import path, then
            in the current folder.
        observation: see `GymEnv`.

    Raises:
        InputError: if the module cannot be imported, has no such callable, or if that returns no gymnasium.Env.
    """
    where = f"environment={factory}"
    module_name, _, name = factory.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"{where}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    try:
        make = operator.attrgetter(name)(module)
    except AttributeError as error:
        near = ", ".join(difflib.get_close_matches(name, dir(module), 3))
        raise InputError(f"{where}: {module_name} has no {name}{near and f'; nearest: {near}'}") from error
    if not callable(make):
        raise InputError(f"{where}: must be callable and return a gymnasium.Env, found {type(make).__name__}")
    env = make()
    if not isinstance(env, gymnasium.Env):
        raise InputError(f"{where}: must return a gymnasium.Env, found {type(env).__module__}.{type(env).__name__}")
    return GymEnv(env, where, observation)


class GymEnv(gymnasium.Wrapper):
    """A gymnasium environment, observed by its states (o,) float32, its picture (height, width, 3) uint8, or by names.

    The picture is the environment's observation, or the entry `frames` of a Dict. The states are the environment's
    observation (a Box of one dimension), or all entries of a Dict that are no pictures, flattened in its order; without
    such entries they are (0,). Of names, each is an entry of the Dict: a picture, or flattened.

    Actions are a Box of one dimension, in the environment's own units and bounds, and are clipped to it. A step costs
    `info["cost"]` of the environment, or 0.

    Where the environment's reset gives an `info["goal"]` that is an observation, it is kept: what the robot is to see.

    Where the environment has a method `peek(actions)`, it must return its K observations after each of the actions
    (K, m) and leave the environment as it was. Evaluation then compares plans with them.

    Args:
        env: the environment.
        where: its name in messages.
        observation: "frames", "states", "both", or the names of observations, which then come as a dict.

    Raises:
        InputError: for other spaces, or an observation that the environment does not give.
    """

    def __init__(self, env: gymnasium.Env, where: str, observation: Observed = "states") -> None:
        super().__init__(env)
        if isinstance(observation, str) and observation not in OBSERVATIONS:
            raise InputError(f"observation={observation!r}: unknown; choose one of {', '.join(OBSERVATIONS)}")
        self.where, self.observation = where, observation
        self.can_peek = callable(_own(env, "peek"))
        space = env.action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise InputError(f"{where}: actions must be real numbers, a Box of one dimension; found {space}")
        self.action_space = spaces.Box(space.low, space.high, dtype=space.dtype)  # type: ignore[arg-type]
        self._parts = self._chosen(env.observation_space)
        kinds = {name: self._space(keys) for name, keys in self._parts.items()}
        self._alone = isinstance(observation, str) and observation != "both"
        self.observation_space = next(iter(kinds.values())) if self._alone else spaces.Dict(kinds)

    def _chosen(self, seen: spaces.Space) -> dict[str, list[str]]:
        """Name of each observation -> the entries of the environment's observation that it is made of."""
        self._whole = not isinstance(seen, spaces.Dict)  # the environment's observation has no entries
        self._entries: dict[str, spaces.Space] = {WHOLE: seen} if self._whole else dict(seen.spaces)  # type: ignore[attr-defined]
        if not isinstance(self.observation, str):
            parts = {name: [WHOLE if self._whole and len(self.observation) == 1 else name] for name in self.observation}
            missing = [name for name, keys in parts.items() if keys[0] not in self._entries]
            if missing:
                raise InputError(f"{self.where}: gives no observation {missing[0]}; it gives {seen}")
            return parts
        picture = WHOLE if self._whole else "frames"
        if self.observation != "states" and not _is_picture(self._entries.get(picture)):
            raise InputError(f"{self.where}: gives no pictures: no Box (height, width, 3) uint8 named frames in {seen}")
        parts = {"frames": [picture], "states": [key for key, part in self._entries.items() if not _is_picture(part)]}
        return parts if self.observation == "both" else {self.observation: parts[self.observation]}

    def _space(self, keys: list[str]) -> spaces.Space:
        """The space of an observation that is made of these entries."""
        parts = [self._entries[key] for key in keys]
        if len(parts) == 1 and _is_picture(parts[0]):
            return parts[0]
        matrix = keys == [WHOLE] and len(parts[0].shape or ()) != 1
        if matrix or not all(isinstance(spaces.flatten_space(part), spaces.Box) for part in parts):
            found = self.env.observation_space
            raise InputError(f"{self.where}: observations must be a Box of one dimension, or a Dict; found {found}")
        return spaces.Box(-np.inf, np.inf, (sum(map(spaces.flatdim, parts)),), np.float32)

    @property
    def decision_seconds(self) -> float | None:
        """The environment's own `decision_seconds`; None where it has none."""
        seconds = _own(self.env, "decision_seconds")
        return None if seconds is None else float(seconds)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        own: dict[str, Any] = {"physics": self.get_physics(), "cost": 0.0}
        if "goal" in info and self._is_observation(info["goal"]):
            own["goal"] = self._observe(info["goal"])
        return self._observe(observation), own

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:  # type: ignore[override]
        observation, reward, terminated, truncated, info = self.env.step(self._clipped(action))
        own = {"physics": self.get_physics(), "cost": self._cost(info)}
        over = bool(terminated), bool(truncated and not terminated)
        return self._observe(observation), float(reward), *over, own  # type: ignore[return-value]

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (K, ...) after each of the actions (K, m); the environment is left as it was."""
        seen = _own(self.env, "peek")(np.stack([self._clipped(action) for action in actions]))
        return stack([self._observe(observation) for observation in seen])

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The environment's own picture, (height, width, 3) uint8, where it was made to give one; else None."""
        found = self.env.render() if self.env.render_mode == "rgb_array" else None
        return found if isinstance(found, np.ndarray) else None

    def get_physics(self) -> np.ndarray:
        """(0,): the state of the simulator is not known."""
        return np.zeros(0)

    def _cost(self, info: dict[str, Any]) -> float:
        return float(info.get("cost", 0.0))

    def _clipped(self, action: np.ndarray) -> np.ndarray:
        space: Any = self.action_space
        return np.clip(checked_action(action, space.shape).astype(space.dtype), space.low, space.high)

    def _is_observation(self, value: Any) -> bool:
        """Whether a value has the entries and the shapes of the environment's observation."""
        entries = {WHOLE: value} if self._whole else value
        needed = [key for keys in self._parts.values() for key in keys]
        return isinstance(entries, dict) and all(
            key in entries and np.shape(entries[key]) == self._entries[key].shape for key in needed
        )

    def _observe(self, observation: Any) -> Observation:
        entries = {WHOLE: observation} if self._whole else observation
        seen = {name: self._joined(entries, keys) for name, keys in self._parts.items()}
        return next(iter(seen.values())) if self._alone else seen

    def _joined(self, entries: dict[str, Any], keys: list[str]) -> np.ndarray:
        if len(keys) == 1 and _is_picture(self._entries[keys[0]]):
            return np.asarray(entries[keys[0]])
        flat = [spaces.flatten(self._entries[key], entries[key]) for key in keys]
        return np.concatenate([np.zeros(0), *flat]).astype(np.float32)


class MujocoEnv(GymEnv):
    """One of gymnasium's MuJoCo environments.

    Args:
        env, where, observation: see `GymEnv`.
        speed_limit: m/s; a step at which the robot moves faster (forwards; Ant: in any direction of the plane) costs 1,
            any other step 0, as in Safety-Gymnasium's velocity tasks. None: no step costs anything.
    """

    def __init__(self, env: gymnasium.Env, where: str, observation: Observed, speed_limit: float | None) -> None:
        super().__init__(env, where, observation)
        self.can_peek = True
        self.model, self.data = self.unwrapped.model, self.unwrapped.data  # type: ignore[attr-defined]
        self.speed_limit, self._planar = speed_limit, env.spec is not None and env.spec.id.startswith("Ant")
        self._scratch = mujoco.MjData(self.model)
        self._renderer: Renderer | None = None

    @property
    def decision_seconds(self) -> float:
        return round(float(self.unwrapped.dt), 9)  # type: ignore[attr-defined]

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (K, ...) after each of the actions (K, m); the simulator is left exactly as it was.

        The simulator goes on after a fall, which would end the episode.
        """
        mujoco.mj_copyData(self._scratch, self.model, self.data)
        seen = [self._observe(self.unwrapped.step(self._clipped(action))[0]) for action in actions]
        mujoco.mj_copyData(self.data, self.model, self._scratch)
        return stack(seen)

    def render(self) -> np.ndarray | None:
        """A picture by the model's first camera, which follows the robot; None where it has none."""
        if self._renderer is None and self.model.ncam:
            self._renderer = Renderer(self.model, PICTURE)
        return None if self._renderer is None else self._renderer.render(self.data)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()

    def get_physics(self) -> np.ndarray:
        """MuJoCo's full state, (p,) float64: see `envs.physics.get_state`."""
        return get_state(self.model, self.data)

    def _cost(self, info: dict[str, Any]) -> float:
        if self.speed_limit is None:
            return 0.0
        if "x_velocity" not in info:
            raise InputError(f"{self.where}: speed_limit: this environment does not tell its speed")
        speed = np.hypot(info["x_velocity"], info["y_velocity"]) if self._planar else info["x_velocity"]
        return float(speed > self.speed_limit)


def _own(env: gymnasium.Env, name: str) -> Any:
    """An attribute of an environment, also below wrappers that change no observation or action; None without one."""
    while not hasattr(env, name) and isinstance(env, HARMLESS):
        env = env.env
    return getattr(env, name, None)


def _is_picture(space: Any) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3
