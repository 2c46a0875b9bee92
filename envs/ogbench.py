"""OGBench's environments (Park et al. 2025), by its package: pip install 'mpdiffuser[ogbench]'.

Each environment has some pairs of a start and a goal, mostly five. An episode's seed chooses the pair and all else that
is random. The planner is told the goal, so it must be trained with goals=true.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported
from envs.gym_env import GymEnv
from envs.observations import Observed
from mpdiffuser.errors import InputError, NotInstalled


def make_ogbench(env_id: str, observation: Observed = "states") -> GymEnv:
    """Make one of OGBench's environments.

    The reward is 1 where the goal is reached, which ends the episode, and else 0. The mean return times 100 is
    OGBench's success rate.

    Args:
        env_id: such as "pointmaze-medium-v0", without the kind of data.
        observation: see `GymEnv`.

    Raises:
        InputError: if the package is not installed, or has no such environment with goals and real actions.
    """
    where = f"environment ogbench/{env_id}"
    import_package()
    found = gymnasium.registry.get(env_id)
    allowed = [name for name, spec in gymnasium.registry.items() if _has_goals(name, spec)]
    if found is None or env_id not in allowed:
        raise InputError(f"{where}: no such environment; allowed: {', '.join(sorted(allowed))}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its spaces are float64
        return GymEnv(_Pairs(gymnasium.make(env_id, disable_env_checker=True)), where, observation)


def import_package() -> None:
    """Import ogbench, which registers its environments.

    Raises:
        InputError: if it is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import ogbench  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalled(f"ogbench is not installed: pip install 'mpdiffuser[ogbench]' ({error})") from error


def _has_goals(name: str, spec: Any) -> bool:
    ours = str(spec.entry_point).startswith(("ogbench.locomaze.maze:", "ogbench.manipspace."))
    return ours and "singletask" not in name


class _Pairs(gymnasium.Wrapper):
    """Chooses the pair by the seed. What the package draws from numpy's global generator is drawn from its own."""

    def __init__(self, env: gymnasium.Env) -> None:
        inner: Any = env.unwrapped
        if isinstance(getattr(type(inner), "action_space", None), property):
            # it makes a new space each time, which cannot be seeded; the goals depend on its samples
            inner.__class__ = type(type(inner).__name__, (type(inner),), {"action_space": inner.action_space})
        super().__init__(env)
        self._random = np.random.RandomState(0)
        self._draws = getattr(env.unwrapped, "_teleport_info", None) is not None  # whether a step is random
        self.decision_seconds = float(inner.control_timestep() if hasattr(inner, "control_timestep") else inner.dt)

    @property
    def render_mode(self) -> str:  # type: ignore[override]
        """The package's cubes, scenes and puzzles draw without saying so."""
        return self.env.render_mode or "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        seed = int(self._random.randint(2**31)) if seed is None else seed
        self._random = np.random.RandomState(seed)
        self.action_space.seed(seed)
        pair = 1 + seed % self.unwrapped.num_tasks  # type: ignore[attr-defined]
        with self._own_random():
            return self.env.reset(seed=seed, options={"task_id": pair, **(options or {})})

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        with self._own_random() if self._draws else contextlib.nullcontext():  # it takes a millisecond
            seen, _, terminated, truncated, info = self.env.step(action)
        return seen, float(info["success"]), terminated, truncated, info

    @contextlib.contextmanager
    def _own_random(self) -> Iterator[None]:
        before = np.random.get_state()
        np.random.set_state(self._random.get_state())
        try:
            yield
        finally:
            self._random.set_state(np.random.get_state())
            np.random.set_state(before)

    def close(self) -> None:
        for name in ("custom_renderer", "_renderer"):  # the package leaves them open
            renderer = getattr(self.unwrapped, name, None)
            if renderer is not None:
                renderer.close()
        super().close()
