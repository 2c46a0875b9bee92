"""What the environments of MuJoCo share: its full state, and actions in [-1, 1]."""

import numpy as np

from envs import gl  # noqa: F401  before mujoco is imported

import mujoco  # isort: skip

from mpdiffuser.errors import InputError

# the state, with the time first, and the solver's warm start, on which the last bits of the next step depend
STATE_KINDS = (int(mujoco.mjtState.mjSTATE_FULLPHYSICS), int(mujoco.mjtState.mjSTATE_WARMSTART))


def get_state(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """mjSTATE_FULLPHYSICS, then mjSTATE_WARMSTART, (p,) float64."""
    parts = [np.empty(mujoco.mj_stateSize(model, kind)) for kind in STATE_KINDS]
    for part, kind in zip(parts, STATE_KINDS):
        mujoco.mj_getState(model, data, part, kind)
    return np.concatenate(parts)


def set_state(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Go to a state (p,) of `get_state`."""
    full, warm_start = np.split(state, [mujoco.mj_stateSize(model, STATE_KINDS[0])])
    data.ctrl[:] = 0
    mujoco.mj_setState(model, data, full, STATE_KINDS[0])
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, warm_start, STATE_KINDS[1])  # mj_forward has changed it


def checked_action(action: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an action as float64.

    Raises:
        InputError: for another shape, or a number that is not finite.
    """
    action = np.asarray(action, np.float64)
    if action.shape != shape or not np.isfinite(action).all():
        raise InputError(f"action {action}: must be {shape} finite numbers")
    return action


class ActionScaling:
    """Scales actions from [-1, 1] to the simulator's range.

    Args:
        low, high: (m,) bounds of the simulator's actions.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.center, self.half_range = (high + low) / 2, (high - low) / 2

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The simulator's action (m,) for an action (m,), which is clipped to [-1, 1].

        Raises:
            InputError: for another shape, or a number that is not finite.
        """
        return self.center + self.half_range * np.clip(checked_action(action, self.center.shape), -1, 1)
