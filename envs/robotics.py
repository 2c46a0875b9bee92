"""What comes from gymnasium-robotics: pip install 'mpdiffuser[robotics]'."""

import contextlib
import enum
import importlib.util
import io
import types
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.wrappers import FilterObservation, FlattenObservation, TimeLimit

from envs import gl  # noqa: F401  before mujoco is imported
from mpdiffuser.errors import NotInstalled

import mujoco  # isort: skip

PACKAGE = "gymnasium_robotics"
FETCH_STEPS = 50  # decisions of an episode
FETCH_SEEN = ("desired_goal", "observation")  # the achieved goal is in the observation


def assets() -> Path:
    """Return the folder of the package's models, without importing it.

    Raises:
        InputError: if gymnasium-robotics is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise _missing("its models are needed")
    return Path(found.submodule_search_locations[0]) / "envs" / "assets"


def make_fetch_pick_and_place() -> gymnasium.Env:
    """FetchPickAndPlace with sparse rewards: 0 where the block is at the goal, else -1.

    Observations are (28,): the goal (3,), then the environment's own 25 numbers. Actions are (4,) in [-1, 1].

    Raises:
        InputError: if gymnasium-robotics is not installed.
    """
    import_package()
    from gymnasium_robotics.envs.fetch.pick_and_place import MujocoFetchPickAndPlaceEnv

    env = TimeLimit(MujocoFetchPickAndPlaceEnv(reward_type="sparse"), FETCH_STEPS)
    return FlattenObservation(FilterObservation(env, FETCH_SEEN))


def import_package() -> None:
    """Import gymnasium-robotics, and make it accept mujoco's joint types.

    Raises:
        InputError: if it is not installed.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it writes about environments that are not used here
            from gymnasium_robotics.utils import mujoco_utils
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    # from mujoco 3.17 on a joint type does not equal numpy's number, which the model holds
    joints: Any = enum.IntEnum("mjtJoint", {name: int(each) for name, each in mujoco.mjtJoint.__members__.items()})  # type: ignore[misc]
    mujoco_utils.mujoco = types.SimpleNamespace(**vars(mujoco) | {"mjtJoint": joints})


def _missing(reason: object) -> NotInstalled:
    return NotInstalled(f"gymnasium-robotics is not installed: pip install 'mpdiffuser[robotics]' ({reason})")
