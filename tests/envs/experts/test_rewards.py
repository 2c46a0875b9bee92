"""The vectorised rewards against dm_control's own."""

import numpy as np
import pytest

from envs.experts.rewards import REWARDS, States
from envs.simulator import DMControlEnv

import mujoco  # isort: skip

GOALS = {"pendulum_swingup": [0], "ball_in_cup_catch": [0, 0, 0, 0.35]}


def random_physics(env, random):
    """A random state: near the start of an episode, near the goal, or anywhere, a little beyond the joints' ranges."""
    env.reset(seed=int(random.integers(2**31)))
    scale = random.choice([0.02, 1.0])
    with env.physics.reset_context():
        if random.random() < 0.3:
            env.data.qpos[:] = GOALS.get(env.task, env.data.qpos)
        env.data.qpos[:] += scale * random.normal(size=env.model.nq)
        env.data.qvel[:] = 3 * scale * random.normal(size=env.model.nv)
    env.data.ctrl[:] = random.uniform(-1, 1, env.model.nu)
    mujoco.mj_forward(env.model, env.data)


@pytest.mark.parametrize("task", REWARDS)
def test_vectorised_reward_equals_the_tasks_on_random_states(task):
    env = DMControlEnv(task)
    random = np.random.default_rng(0)
    paid = set()
    for _ in range(100):
        random_physics(env, random)
        fields = (env.data.qpos, env.data.qvel, env.data.ctrl, env.data.sensordata)
        states = States(*(np.array(field)[None, None] for field in fields))
        reward = REWARDS[task](env.model, states)
        assert reward.shape == (1, 1)
        paid.add(float(env._task.get_reward(env.physics)))
        np.testing.assert_allclose(reward[0, 0], env._task.get_reward(env.physics), atol=1e-9)
    assert max(paid) - min(paid) > 0.1  # rewarded and unrewarded states were among them
