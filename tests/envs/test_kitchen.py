"""The kitchen against gymnasium-robotics' own physics and rewards, and D4RL's noise and ends."""

from typing import Any

import numpy as np
import pytest

from envs import make
from envs.kitchen import DECISIONS, JOINTS, NEAR, POSITIONS, TASKS, THINGS, Kitchen
from envs.robotics import import_package
from mpdiffuser.errors import InputError


def package(task: str) -> Any:
    """The package's environment, without noise."""
    import_package()
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv

    return KitchenEnv(tasks_to_complete=list(TASKS[task]), robot_noise_ratio=0.0, object_noise_ratio=0.0)


def solve(env: Kitchen, *things: str) -> None:
    """Put things where they are to be."""
    for thing in things:
        places, wanted = THINGS[thing]
        env.data.qpos[places] = wanted


def test_equals_the_package_without_noise() -> None:
    ours, theirs = Kitchen(task="mixed"), package("mixed")
    ours._amplitudes[:] = 0
    seen, _ = ours.reset(seed=0)
    theirs.reset(seed=0)
    np.testing.assert_allclose(seen[:POSITIONS], theirs.data.qpos, atol=1e-6)
    for action in np.random.default_rng(0).uniform(-1, 1, (40, JOINTS)):
        seen = ours.step(action)[0]
        theirs.step(action)
        np.testing.assert_allclose(seen[:POSITIONS], theirs.data.qpos, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_each_thing_pays_once_and_the_fourth_ends_the_episode(task: str) -> None:
    env = Kitchen(task=task)
    seen, _ = env.reset(seed=0)
    wanted = np.zeros(POSITIONS)
    for thing in TASKS[task]:
        wanted[THINGS[thing][0]] = THINGS[thing][1]
    np.testing.assert_allclose(seen[POSITIONS:], wanted, rtol=1e-6)
    paid = []
    for number in range(1, 5):
        solve(env, *TASKS[task][:number])
        env.data.qvel[:] = 0
        _, reward, over, late, _ = env.step(np.zeros(JOINTS))
        paid.append((reward, over, late))
    assert paid == [(1.0, False, False)] * 3 + [(1.0, True, False)]


def test_noise_has_d4rls_amplitudes_and_moves_the_servos() -> None:
    env = Kitchen()
    found = []
    for seed in range(300):
        seen, _ = env.reset(seed=seed)
        found.append(seen[:POSITIONS] - env.data.qpos)
    largest = np.abs(found).max(0)
    np.testing.assert_allclose(largest[[0, 8]], 0.1 * 0.1, rtol=0.05)  # of the arm
    np.testing.assert_allclose(largest[[9, 19]], 0.1 * 0.005, rtol=0.05)
    np.testing.assert_allclose(largest[[11, 16]], 0.1 * 0.0005, rtol=0.05)
    env.move(np.full(JOINTS, 0.5))
    np.testing.assert_allclose(env.data.ctrl[0], seen[0] + 0.5 * 2 * 0.08, rtol=1e-4)


def test_an_episode_has_its_time_and_peeking_changes_nothing() -> None:
    env: Any = make({"kind": "kitchen", "task": "complete"})
    env.reset(seed=1)
    ahead = env.peek(np.zeros((2, JOINTS)))
    again = env.peek(np.zeros((2, JOINTS)))
    np.testing.assert_array_equal(ahead, again)
    for step in range(DECISIONS):
        _, reward, over, late, _ = env.step(np.zeros(JOINTS))
        assert (reward, over) == (0.0, False) and late == (step == DECISIONS - 1)
    assert env.render().shape == (240, 240, 3) and NEAR == 0.3
    env.close()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="task: must be one of complete, partial, mixed, found 'tea'"):
        make({"kind": "kitchen", "task": "tea"})
    env = Kitchen()
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"must be \(9,\) finite numbers"):
        env.step(np.zeros(8))
    monkeypatch.setattr("envs.robotics.PACKAGE", "not_installed_here")
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[robotics\]'"):
        Kitchen()
