"""dm_control tasks as Gymnasium environments that give frames, states or both."""

import difflib
import importlib.metadata
import logging
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip
from dm_control import suite  # isort: skip

from envs.observations import Observation, stack
from envs.physics import STATE_KINDS, ActionScaling, get_state, set_state
from envs.rendering import MODES, Renderer, check_camera, check_size
from mpdiffuser.errors import InputError

OBSERVATIONS = ("frames", "states", "both")
EPISODE = 1000  # control steps of an episode with dm_control's own time limit
SUITE_TASKS = {f"{domain}_{task}": (domain, task) for domain, task in sorted(suite.ALL_TASKS)}

UNBOUNDED = 1e10  # the limit that dm_control gives to an action without one (lqr); such an action ranges over [-1, 1]

# what a domain's `initialize_episode` writes into the model: part of the state, which MuJoCo's own state omits
MODEL_STATE: dict[str, dict[str, Any]] = {
    "finger": {"site_pos": "target", "site_size": "target"},
    "fish": {"geom_pos": "target"},
    "manipulator": {"body_pos": slice(None), "body_quat": slice(None)},
    "point_mass": {"wrap_prm": slice(None)},
    "reacher": {"geom_pos": "target"},
    "stacker": {"body_pos": "target"},
    "swimmer": {"geom_pos": "target", "light_pos": "target_light"},
}

# mujoco warns of this attribute at every load, and dm_control's own models use it
logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())


def find_task(task: str) -> tuple[str, str]:
    """(domain, task) of a name such as "ball_in_cup_catch".

    Raises:
        InputError: on an unknown name; lists those nearest to it.
    """
    if task not in SUITE_TASKS:
        near = difflib.get_close_matches(str(task), SUITE_TASKS, 5, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(SUITE_TASKS)}"
        raise InputError(f"task={task!r}: no such dm_control task; {hint}")
    return SUITE_TASKS[task]


def load_suite(task: str, time_limit: float | None = None) -> Any:
    """The dm_control environment of a task name; time_limit in seconds."""
    domain, name = find_task(task)
    try:
        return suite.load(domain, name, task_kwargs={} if time_limit is None else {"time_limit": time_limit})
    except AttributeError as error:
        versions = {package: importlib.metadata.version(package) for package in ("dm_control", "mujoco")}
        raise InputError(
            f"dm_control {versions['dm_control']} does not fit mujoco {versions['mujoco']} ({error}); "
            "install a pair that does: pip install 'dm_control<1.0.51' 'mujoco<3.18'"
        ) from error


class DMControlEnv(gymnasium.Env):
    """A dm_control task.

    Args:
        task: "<domain>_<task>", e.g. "cartpole_swingup".
        observation: "frames", Box uint8 (size, size, 3); "states", Box float32 (o,), dm_control's observations
            concatenated; "both", Dict of the two.
        action_repeat: control steps per decision; a step's reward is the sum over them.
        size: pixels a side.
        time_limit: seconds of simulated time per episode; None: the task's own (1000 control steps).
        rendering: "fast" or "full", see envs.rendering.
        camera: index of the model's camera.

    Actions are Box(-1, 1), scaled to the task's range and clipped to it. An episode ends by truncation at the time
    limit, or by termination where the task says so. `info["physics"]` is `get_physics()`, `info["cost"]` is 0.

    Raises:
        InputError: on a bad argument, seed or action.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    can_peek = True

    def __init__(
        self,
        task: str = "cartpole_swingup",
        observation: str = "states",
        action_repeat: int = 1,
        size: int = 64,
        time_limit: float | None = None,
        rendering: str = "fast",
        camera: int = 0,
    ) -> None:
        for option, value, allowed in (("observation", observation, OBSERVATIONS), ("rendering", rendering, MODES)):
            if value not in allowed:
                raise InputError(f"{option}={value!r}: unknown; choose one of {', '.join(allowed)}")
        if not isinstance(action_repeat, int) or not 1 <= action_repeat <= EPISODE:
            raise InputError(f"action_repeat={action_repeat!r}: must be a whole number between 1 and {EPISODE}")
        check_size(size)
        if time_limit is not None and not time_limit > 0:
            raise InputError(f"time_limit={time_limit!r}: must be a positive number of seconds")
        self.task, self.observation, self.action_repeat = task, observation, action_repeat
        self.size, self.rendering, self.camera = size, rendering, camera
        self.render_mode = "rgb_array"
        self._env = load_suite(task, time_limit)
        self.physics, self._task = self._env.physics, self._env.task
        if observation != "states":
            check_camera(self.model, camera)
        self._substeps = round(self._env.control_timestep() / self.physics.timestep())
        self.step_limit = float(self._env._step_limit)  # control steps; dm_control has no public name for it
        self.time_limit = self.step_limit * self._env.control_timestep()  # seconds
        self._steps = 0
        self._renderer: Renderer | None = None
        self._scratch = mujoco.MjData(self.model)
        self._init_spaces()

    def _init_spaces(self) -> None:
        spec = self._env.action_spec()
        bounded = np.asarray(spec.maximum) < UNBOUNDED
        low, high = np.where(bounded, spec.minimum, -1.0), np.where(bounded, spec.maximum, 1.0)
        self._control = ActionScaling(np.broadcast_to(low, spec.shape), np.broadcast_to(high, spec.shape))
        self.action_space = spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        dimension = sum(int(np.prod(s.shape)) for s in self._env.observation_spec().values())
        kinds: dict[str, spaces.Space] = {
            "frames": spaces.Box(0, 255, (self.size, self.size, 3), np.uint8),
            "states": spaces.Box(-np.inf, np.inf, (dimension,), np.float32),
        }
        self.observation_space = spaces.Dict(kinds) if self.observation == "both" else kinds[self.observation]

    @property
    def decision_seconds(self) -> float:
        """Simulated time between two decisions: the inverse of the frame rate that a controller sees."""
        return round(self.action_repeat * self._env.control_timestep(), 9)

    @property
    def model(self) -> mujoco.MjModel:
        return self.physics.model.ptr

    @property
    def data(self) -> mujoco.MjData:
        return self.physics.data.ptr

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start an episode; `seed` (0 to 2**32 - 1) seeds the task's own generator, which goes on with None."""
        if seed is not None:
            if not 0 <= seed < 2**32:
                raise InputError(f"seed={seed}: must be between 0 and 2**32 - 1")
            self._task.random.seed(seed)
        super().reset(seed=seed)
        self._env.reset()
        self._steps = 0
        return self._observe(), {"physics": self.get_physics(), "cost": 0.0}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        reward, terminated, truncated = 0.0, False, False
        control = self._control(action)
        for _ in range(self.action_repeat):
            self._advance(control)
            reward += float(self._task.get_reward(self.physics))
            self._steps += 1
            truncated = self._steps >= self.step_limit
            terminated = not truncated and self._task.get_termination(self.physics) is not None
            if truncated or terminated:
                break
        return self._observe(), reward, terminated, truncated, {"physics": self.get_physics(), "cost": 0.0}

    def _advance(self, control: np.ndarray) -> None:
        self._task.before_step(control, self.physics)
        self.physics.step(self._substeps)
        self._task.after_step(self.physics)

    def _observe(self) -> Observation:
        if self.observation == "frames":
            return self.render()
        states = self._task.get_observation(self.physics).values()
        flat = np.concatenate([np.ravel(value) for value in states]).astype(np.float32)
        return {"frames": self.render(), "states": flat} if self.observation == "both" else flat

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A frame of the current state, (size, size, 3) uint8."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, self.size, self.camera, self.rendering, share=self.task)
        return self._renderer.render(self.data)

    def _model_state(self) -> list[tuple[Any, Any]]:
        """(array, rows) of the model that belong to the state: see MODEL_STATE."""
        fields = MODEL_STATE.get(SUITE_TASKS[self.task][0], {})
        return [(getattr(self.physics.named.model, field), rows) for field, rows in fields.items()]

    def joints(self) -> list[dict[str, Any]]:
        """Each joint's name, type ("hinge", "slide", ...), and indices of position and velocity in `get_physics()`."""
        return [
            {
                "name": self.model.joint(j).name,
                "type": mujoco.mjtJoint(int(self.model.jnt_type[j])).name.removeprefix("mjJNT_").lower(),
                "position_index": 1 + int(self.model.jnt_qposadr[j]),  # the time comes first
                "velocity_index": 1 + self.model.nq + int(self.model.jnt_dofadr[j]),
            }
            for j in range(self.model.njnt)
        ]

    def get_physics(self) -> np.ndarray:
        """The whole state, (p,) float64: `envs.physics.get_state`, then what the task writes into the model, such as
        a target's position. Exception: quadruped_escape's terrain is left out.
        """
        own = [np.ravel(array[rows]) for array, rows in self._model_state()]
        return np.concatenate([get_state(self.model, self.data), *own])

    def set_physics(self, state: np.ndarray) -> None:
        """Go to a state of `get_physics`, of this or another environment of the same task.

        The step count follows the state's time, so the time limit keeps its meaning.
        """
        state = np.asarray(state, np.float64)
        sizes = [sum(mujoco.mj_stateSize(self.model, kind) for kind in STATE_KINDS)]
        sizes += [np.size(array[rows]) for array, rows in self._model_state()]
        if state.shape != (sum(sizes),) or not np.isfinite(state).all():
            raise InputError(f"physics of {self.task}: {sum(sizes)} finite numbers needed, found shape {state.shape}")
        general, *rest = np.split(state, np.cumsum(sizes)[:-1])
        for (array, rows), values in zip(self._model_state(), rest, strict=True):
            array[rows] = values.reshape(np.shape(array[rows]))
        set_state(self.model, self.data, general)
        self._steps = round(self.data.time / self._env.control_timestep())

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (K, ...) after each of the actions (K, m); the simulator is left exactly as it was."""
        mujoco.mj_copyData(self._scratch, self.model, self.data)
        seen = []
        for action in np.asarray(actions):
            control = self._control(action)
            for _ in range(self.action_repeat):
                self._advance(control)
            seen.append(self._observe())
        mujoco.mj_copyData(self.data, self.model, self._scratch)
        return stack(seen)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
