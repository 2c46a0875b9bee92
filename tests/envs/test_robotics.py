"""FetchPickAndPlace against gymnasium-robotics' own observations and rewards."""

import sys

import numpy as np
import pytest

from envs.robotics import make_fetch_pick_and_place
from mpdiffuser.errors import InputError

GOAL, BLOCK = slice(0, 3), slice(6, 9)  # entries of an observation


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.utils", None)
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[robotics\]'"):
        make_fetch_pick_and_place()


def test_the_environment_is_the_packages() -> None:
    env = make_fetch_pick_and_place()
    seen, _ = env.reset(seed=3)
    inner = env.unwrapped
    whole = inner._get_obs()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(seen, np.concatenate([whole["desired_goal"], whole["observation"]]))
    np.testing.assert_allclose(seen[GOAL], whole["desired_goal"])
    np.testing.assert_allclose(seen[BLOCK], whole["achieved_goal"])
    for step in range(50):
        seen, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        near = np.linalg.norm(seen[BLOCK] - seen[GOAL]) < 0.05
        assert reward == (0.0 if near else -1.0) and not terminated and truncated == (step == 49)
