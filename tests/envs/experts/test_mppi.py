"""MPPI: its rollouts against the environment, its plans, its command."""

import subprocess
import sys

import numpy as np
import pytest

from envs.experts.mppi import MPPI, mppi_returns, spline_matrix
from envs.experts.rewards import REWARDS
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError


@pytest.mark.parametrize("task", REWARDS)
def test_rollouts_earn_what_the_environment_pays(task):
    """From a state in mid-episode, many sequences at once, against the environment stepped one by one."""
    env = DMControlEnv(task, action_repeat=2)
    random = np.random.default_rng(1)
    env.reset(seed=3)
    for _ in range(40):
        env.step(random.uniform(-1, 1, env.action_space.shape))
    controller = MPPI(env, threads=2)
    actions = random.uniform(-1, 1, (3, 5, *env.action_space.shape))
    start = env.get_physics()
    rollout = controller.rollout(actions)
    rewards = controller.reward(env.model, rollout).reshape(3, 5, 2).sum(-1)
    np.testing.assert_array_equal(env.get_physics(), start)
    for sequence, expected in zip(actions, rewards):
        env.set_physics(start)
        paid = [env.step(action)[1] for action in sequence]
        np.testing.assert_allclose(expected, paid, rtol=1e-5, atol=1e-6)
    controller.close()


def test_spline_matrix_interpolates_linearly():
    matrix = spline_matrix(np.array([0.0, 0.5, 2.0, 3.0, 9.0]), np.array([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(matrix @ [0.0, 10.0, 30.0], [0.0, 5.0, 20.0, 30.0, 30.0])


def test_a_small_budget_beats_random_actions():
    seeds = [0, 1]
    planned = mppi_returns("point_mass_easy", seeds, action_repeat=4, samples=12, knots=4)
    env = DMControlEnv("point_mass_easy", action_repeat=4)
    random = np.random.default_rng(0)
    for seed, expected_more in zip(seeds, planned):
        env.reset(seed=seed)
        total, truncated = 0.0, False
        while not truncated:
            _, reward, _, truncated, _ = env.step(random.uniform(-1, 1, 2))
            total += reward
        assert expected_more > 500 > total


def test_the_same_seed_plans_the_same_and_reset_forgets():
    env = DMControlEnv("pendulum_swingup", action_repeat=4)
    env.reset(seed=0)
    first, second = (MPPI(env, seed=5, threads=threads) for threads in (1, 2))
    actions = np.stack([first.act() for _ in range(4)])
    np.testing.assert_array_equal(actions, [second.act() for _ in range(4)])
    assert np.abs(actions).max() <= 1 and np.abs(actions).sum() > 0
    first.reset()
    assert not first.plan.any()


def test_unknown_task_and_setting_are_refused():
    with pytest.raises(InputError, match=r"humanoid_walk.*cartpole_swingup"):
        mppi_returns("humanoid_walk", [0])
    with pytest.raises(InputError, match=r"sample.*samples"):
        MPPI(DMControlEnv("pendulum_swingup"), sample=3)


@pytest.mark.slow
def test_command_prints_returns():
    command = [sys.executable, "-m", "envs.experts.mppi", "point_mass_easy", "--action-repeat", "4", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("seed 0: return ")
    bad = subprocess.run([*command[:3], "chess_win"], capture_output=True, text=True)
    assert bad.returncode != 0 and "chess_win" in bad.stderr and "Traceback" not in bad.stderr
