"""GymEnv against gymnasium itself."""

import gymnasium
import numpy as np
import pytest

from envs.gym_env import GymEnv
from envs.vector import VectorEnv
from mpdiffuser.errors import InputError


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", ["Hopper-v4", "HalfCheetah-v4"])
def test_it_is_gymnasiums(env_id: str) -> None:
    reference, env = gymnasium.make(env_id), GymEnv(env_id)
    random = np.random.default_rng(0)
    a, b = reference.reset(seed=5)[0], env.reset(seed=5)[0]
    np.testing.assert_array_equal(a.astype(np.float32), b)
    for _ in range(40):
        action = random.uniform(-1, 1, env.action_space.shape)
        expected, found = reference.step(action), env.step(action)
        np.testing.assert_array_equal(expected[0].astype(np.float32), found[0])
        assert found[1:4] == (pytest.approx(expected[1]), expected[2], expected[3])
        if expected[2]:
            break


def test_a_peek_is_what_happens_then_and_leaves_no_trace() -> None:
    env = GymEnv("Hopper-v4")
    env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    before = env.get_physics()
    seen = env.peek(actions)
    np.testing.assert_array_equal(env.get_physics(), before)
    for action, expected in zip(actions, seen):
        np.testing.assert_array_equal(env.step(action)[0], expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("env_id", "planar"), [("HalfCheetah-v4", False), ("Ant-v4", True)])
def test_a_step_too_fast_costs(env_id: str, planar: bool) -> None:
    reference = gymnasium.make(env_id)
    random, limit = np.random.default_rng(0), 0.3
    reference.reset(seed=2)
    vector = VectorEnv({"kind": "gymnasium", "env_id": env_id, "speed_limit": limit}, 1, 1)
    try:
        vector.reset(seed=[2])
        paid = []
        for _ in range(30):
            action = random.uniform(-1, 1, reference.action_space.shape).astype(np.float32)
            info = reference.step(action)[4]
            speed = np.hypot(info["x_velocity"], info["y_velocity"]) if planar else info["x_velocity"]
            paid.append(vector.step(action[None])[4]["cost"][0])
            assert paid[-1] == float(speed > limit)
        assert 0 < sum(paid) < 30
    finally:
        vector.close()


@pytest.mark.parametrize("env_id", ["Hoper-v4", "CartPole-v1"])
def test_environments_that_do_not_fit(env_id: str) -> None:
    with pytest.raises(InputError, match=env_id):
        GymEnv(env_id)


def test_it_names_no_module_and_gives_no_frames() -> None:
    with pytest.raises(InputError, match=r"environment 'os:Hopper-v4': must be a name such as"):
        GymEnv("os:Hopper-v4")
    with pytest.raises(InputError, match=r"observation='frames': a gymnasium environment gives states only"):
        GymEnv("Hopper-v4", observation="frames")
