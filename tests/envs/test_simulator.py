"""DMControlEnv against dm_control itself."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from envs import simulator
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

from dm_control import suite  # isort: skip

CONFIGS = Path(__file__).parents[2] / "configs" / "task"
OTHERS = {"d4rl", "dsrl", "ogbench", "dm_control"}  # suites, whose tasks the user names
TASKS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - OTHERS)


def random_actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def flat(time_step):
    return np.concatenate([np.ravel(value) for value in time_step.observation.values()]).astype(np.float32)


def raw(task, seed, time_limit=None):
    domain, name = simulator.SUITE_TASKS[task]
    options = {} if time_limit is None else {"time_limit": time_limit}
    return suite.load(domain, name, task_kwargs={"random": seed, **options})


def same(one, other):
    if isinstance(one, dict):
        return all(np.array_equal(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


def test_task_configs_name_their_task():
    assert len(TASKS) == 10
    for task in TASKS:
        config = OmegaConf.load(CONFIGS / f"{task}.yaml")
        assert config.name == task and 1000 % config.action_repeat == 0
        assert config.size == 64 and config.camera in (0, 1, 2)


@pytest.mark.parametrize("observation", simulator.OBSERVATIONS)
def test_gymnasium_checker(observation):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(DMControlEnv("ball_in_cup_catch", observation, 4, size=32), skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_equals_dm_control(task):
    """Observations, action scaling (quadruped's range is not [-1, 1]), repeats, rewards and the end of the episode."""
    repeat, limit = 3, 1.0
    env, oracle = DMControlEnv(task, action_repeat=repeat, time_limit=limit), raw(task, 5, limit)
    time_step, (states, _) = oracle.reset(), env.reset(seed=5)
    assert np.array_equal(states, flat(time_step))
    spec = oracle.action_spec()
    truncated = False
    for action in random_actions(env, 1000):
        scaled = spec.minimum + (action.astype(np.float64) + 1) / 2 * (spec.maximum - spec.minimum)
        total = 0.0
        for _ in range(repeat):
            time_step = oracle.step(scaled)
            total += time_step.reward
            if time_step.last():
                break
        states, reward, terminated, truncated, _ = env.step(action)
        # the oracle's scaling rounds differently, which chaotic contacts would magnify: start again from its state
        np.testing.assert_allclose(states, flat(time_step), rtol=1e-3, atol=1e-3)
        assert reward == pytest.approx(total, abs=1e-5) and not terminated and truncated == time_step.last()
        with oracle.physics.reset_context():
            oracle.physics.set_state(env.physics.get_state())
        env.set_physics(env.get_physics())
        oracle.physics.data.qacc_warmstart[:] = env.physics.data.qacc_warmstart
        if truncated:
            break
    assert truncated


def test_unscaled_actions_are_passed_on_exactly():
    env, oracle = DMControlEnv("cheetah_run", action_repeat=2), raw("cheetah_run", 0)
    env.reset(seed=0)
    oracle.reset()
    for action in random_actions(env, 40):
        reward = oracle.step(action).reward
        time_step = oracle.step(action)
        states, total, *_ = env.step(action)
        assert np.array_equal(states, flat(time_step)) and total == reward + time_step.reward


def test_episode_has_1000_control_steps():
    env = DMControlEnv("pendulum_swingup", action_repeat=7)
    env.reset(seed=0)
    flags = [env.step(np.zeros(1))[2:4] for _ in range(143)]  # 142 * 7 = 994, so the last decision is cut short
    assert flags[:-1] == [(False, False)] * 142 and flags[-1] == (False, True)
    assert env.data.time == pytest.approx(20.0)
    assert env.time_limit == pytest.approx(20.0)


def test_termination_equals_dm_control():
    env, oracle = DMControlEnv("lqr_lqr_2_1", action_repeat=1), raw("lqr_lqr_2_1", 0)
    env.reset(seed=0)
    oracle.reset()
    ends = []
    for scale in (1.0, 1e-9):  # the regulator's episode ends at the origin
        for physics in (env.physics, oracle.physics):
            with physics.reset_context():
                physics.set_state(scale * np.ones(4))
        _, _, terminated, truncated, _ = env.step(np.zeros(1))
        ends.append(terminated)
        assert terminated == oracle.step(np.zeros(1)).last() and not truncated
    assert ends == [False, True]


def test_actions_are_clipped():
    env = DMControlEnv("walker_walk")
    env.reset(seed=0)
    assert same(env.peek(np.full((3, 6), 7.0)), env.peek(np.ones((3, 6))))


@pytest.mark.parametrize("task", TASKS)
def test_seeding(task):
    env, other, oracle = DMControlEnv(task), DMControlEnv(task), raw(task, 11)
    first, second = flat(oracle.reset()), flat(oracle.reset())
    assert np.array_equal(env.reset(seed=11)[0], first)
    assert np.array_equal(env.reset()[0], second)
    assert not np.array_equal(other.reset(seed=12)[1]["physics"], env.reset(seed=11)[1]["physics"])


@pytest.mark.parametrize("task", TASKS)
def test_set_physics_and_peek_are_exact(task):
    env = DMControlEnv(task, "both", action_repeat=2, size=32, time_limit=1.0)
    actions = random_actions(env, 300)
    env.reset(seed=1)
    for action in actions[:10]:
        env.step(action)
    here = env.get_physics()
    assert here[0] == env.data.time

    twin = DMControlEnv(task, "both", action_repeat=2, size=32, time_limit=1.0)
    twin.reset(seed=99)
    twin.set_physics(here)
    assert np.array_equal(twin.get_physics(), here)
    assert np.array_equal(twin.render(), env.render())
    if task == "reacher_easy":
        target = env.model.geom("target").id
        assert np.array_equal(twin.data.geom_xpos[target], env.data.geom_xpos[target])

    plan = actions[10:14]
    seen = env.peek(plan)
    assert np.array_equal(env.get_physics(), here)
    ended = False
    for index, action in enumerate(actions[10:]):
        if index % 3 == 2:
            twin.peek(actions[:2])  # must not change twin's future
        result, expected = twin.step(action), env.step(action)
        assert same(result[0], expected[0]) and result[1:4] == expected[1:4]
        assert np.array_equal(result[4]["physics"], expected[4]["physics"])
        if index < len(plan):
            assert same(result[0], {key: values[index] for key, values in seen.items()})
        ended = expected[3]
        if ended:
            break
    assert ended  # the step count went along


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "cartpole_swing"}, ["cartpole_swing", "cartpole_swingup"]),
        ({"task": "tetris"}, ["tetris", "walker_walk"]),
        ({"observation": "image"}, ["image", "frames, states, both"]),
        ({"rendering": "slow"}, ["slow", "fast, full"]),
        ({"action_repeat": 0}, ["action_repeat=0"]),
        ({"time_limit": -1.0}, ["time_limit=-1.0"]),
        ({"size": 10**6}, ["size=1000000", "4096"]),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(InputError) as error:
        DMControlEnv(**options)
    assert all(word in str(error.value) for word in words)


def test_bad_calls():
    env = DMControlEnv("reacher_easy", camera=9)
    env.reset(seed=0)
    for wrong in ([0.0], [0.0, np.nan], [[0.0, 0.0]]):
        with pytest.raises(InputError, match="action"):
            env.step(np.array(wrong))
    with pytest.raises(InputError, match="physics of reacher_easy"):
        env.set_physics(np.zeros(3))
    with pytest.raises(InputError, match="seed=-1"):
        env.reset(seed=-1)
    with pytest.raises(InputError, match="camera=9"):
        env.render()


def test_mujoco_that_does_not_fit(monkeypatch):
    def fail(*_, **__):
        raise AttributeError("MjModel has no attribute flex_vertedge")

    monkeypatch.setattr(simulator.suite, "load", fail)
    with pytest.raises(InputError, match=r"dm_control \d+\.\d+.*mujoco \d+\.\d+.*pip install"):
        DMControlEnv("cartpole_swingup")
