"""Adroit against gymnasium-robotics' own observations, starts and physics, and against D4RL's rewards by hand."""

import contextlib
import importlib
import io
from typing import Any

import numpy as np
import pytest

from envs import make
from envs.adroit import TASKS, make_adroit
from mpdiffuser.errors import InputError


def package(task: str) -> Any:
    """The package's environment."""
    with contextlib.redirect_stderr(io.StringIO()):
        module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
    return getattr(module, f"AdroitHand{task.capitalize()}Env")()


def reaching(env: Any, task: str) -> float:
    """The distance of the palm from what it is to grasp."""
    palm = env.data.site("S_grasp").xpos
    wanted = env.data.site("S_handle") if task == "door" else env.data.body("Object")
    return float(np.linalg.norm(palm - wanted.xpos))


@pytest.mark.parametrize("task", TASKS)
def test_equals_the_package_but_for_the_sign_of_the_reaching_term(task: str) -> None:
    ours, theirs = make({"kind": "adroit", "task": task}), package(task)
    inner: Any = ours.unwrapped  # type: ignore[attr-defined]
    for seed in (0, 7):
        seen, expected = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
        np.testing.assert_allclose(seen, expected, atol=1e-6)
        random = np.random.default_rng(seed)
        for _ in range(25):
            action = random.uniform(-1, 1, ours.action_space.shape)
            seen, reward, over, _, _ = ours.step(action)
            expected, paid, *_ = theirs.step(action)
            np.testing.assert_allclose(seen, expected, atol=1e-5)
            term = 0.0 if task == "pen" else 0.2 * reaching(inner, task)
            assert reward == pytest.approx(float(np.squeeze(paid)) - term, abs=1e-6)
            if over:
                break


def test_the_episode_ends_when_the_pen_is_dropped() -> None:
    env = make_adroit(task="pen")
    env.reset(seed=0)
    assert env.step(np.zeros(24))[2:4] == (False, False)
    env.data.joint("OBJTx").qpos += 0.3  # downwards, as the pen lies
    _, reward, over, late, _ = env.step(np.zeros(24))
    assert env.data.body("Object").xpos[2] < 0.075 and over and not late and reward < -4


def test_bonuses_of_the_door() -> None:
    env, found = make_adroit(task="door"), []
    env.reset(seed=0)
    env.data.qvel[:] = 0
    for angle in (0.1, 0.3, 1.1, 1.4):
        env.data.qpos[-2] = angle
        distance = np.linalg.norm(env.data.site("S_grasp").xpos - env.data.site("S_handle").xpos)
        found.append(env.reward() + 0.1 * distance + 0.1 * (angle - 1.57) ** 2)
        assert env.observe()[-1] == (1 if angle > 1 else -1)
    np.testing.assert_allclose(found, [0, 2, 10, 20], atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_has_its_time_and_peeking_changes_nothing(task: str) -> None:
    env = make_adroit(task=task)
    first, _ = env.reset(seed=1)
    assert env.observation_space.contains(first)
    actions = np.zeros((env.decisions, *env.action_space.shape), np.float32)  # type: ignore[misc]
    ahead = env.peek(actions[:3])
    for step in range(env.decisions):
        seen, _, over, late, _ = env.step(actions[step])
        if step < 3:
            np.testing.assert_array_equal(seen, ahead[step])
        if over:
            return
    assert late


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"task: must be one of pen, hammer, door, relocate, found 'cup'"):
        make({"kind": "adroit", "task": "cup"})
    with pytest.raises(InputError, match="observation: must be one of states, found 'frames'"):
        make({"kind": "adroit", "task": "pen"}, "frames")
    env = make_adroit()
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"must be \(24,\) finite numbers"):
        env.step(np.full(24, np.nan))
