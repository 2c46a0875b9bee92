"""VectorEnv against single environments, and the life and death of its processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from envs import make
from envs.vector import VectorEnv
from mpdiffuser.errors import InputError

pytestmark = pytest.mark.slow  # simulators in processes of their own

REACHER = {
    "kind": "dm_control",
    "task": "reacher_easy",
    "action_repeat": 4,
    "size": 32,
    "camera": 0,
    "rendering": "fast",
    "time_limit": 0.4,
}
PENDULUM = {**REACHER, "task": "pendulum_swingup"}


@pytest.fixture(scope="module")
def vector():
    env = VectorEnv(REACHER, 3, processes=2, observation="both")
    yield env
    env.close()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:  # a zombie whose parent is not its own
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_equals_single_environments(vector):
    singles = [make(REACHER, "both") for _ in range(3)]
    observations, infos = vector.reset(seed=[7, 3, 5])
    starts = [env.reset(seed=seed) for env, seed in zip(singles, [7, 3, 5])]
    random = np.random.default_rng(0)
    plans = random.uniform(-1, 1, (3, 2, 2))
    peeked = vector.peek(plans)
    for index, (env, (observation, info)) in enumerate(zip(singles, starts)):
        assert np.array_equal(observations["frames"][index], observation["frames"])
        assert np.array_equal(infos["physics"][index], info["physics"])
        for key, values in env.peek(plans[index]).items():
            assert np.array_equal(peeked[key][index], values)
    for _ in range(5):
        actions = random.uniform(-1, 1, (3, 2))
        observations, rewards, terminations, truncations, infos = vector.step(actions)
        for index, env in enumerate(singles):
            observation, reward, terminated, truncated, info = env.step(actions[index])
            assert all(np.array_equal(observations[key][index], observation[key]) for key in observation)
            assert rewards[index] == reward and truncations[index] == truncated
            assert terminations[index] == terminated and np.array_equal(infos["physics"][index], info["physics"])
    assert truncations.all()


def test_spaces_are_batched(vector):
    observations, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(observations)
    assert vector.action_space.shape == (3, 2) and vector.single_action_space.shape == (2,)


def test_integer_seed_counts_up(vector):
    one, _ = vector.reset(seed=4)
    other, _ = vector.reset(seed=[4, 5, 6])
    assert np.array_equal(one["states"], other["states"])


def test_finished_environments_wait_for_their_reset(vector):
    vector.reset(seed=[1, 2, 3])
    for _ in range(5):
        last, _, _, truncations, _ = vector.step(np.ones((3, 2)))
    assert truncations.all()
    observations, rewards, _, truncations, _ = vector.step(-np.ones((3, 2)))
    assert truncations.all() and not rewards.any() and np.array_equal(observations["frames"], last["frames"])
    mask = np.array([False, True, False])
    restarted, _ = vector.reset(seed=[0, 8, 0], options={"reset_mask": mask})
    assert np.array_equal(restarted["states"][[0, 2]], last["states"][[0, 2]])
    fresh, _ = vector.reset(seed=[8, 8, 8])
    assert np.array_equal(restarted["states"][1], fresh["states"][1])


def test_workers_start_light(vector):
    modules = vector.worker_modules()
    assert "mujoco" in modules and "torch" not in modules


def test_failures_reach_the_parent(vector):
    vector.reset(seed=0)
    with pytest.raises(InputError, match="finite"):
        vector.step(np.full((3, 2), np.nan))
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*envs/worker\.py.*no attribute 'fly'"):
        vector._call("fly")
    with pytest.raises(InputError, match="3 rows"):
        vector.step(np.zeros((2, 2)))
    with pytest.raises(InputError, match="2 seeds"):
        vector.reset(seed=[0, 1])
    vector.reset(seed=0)  # it lives on
    with pytest.raises(InputError, match="no such dm_control task"):
        VectorEnv({**REACHER, "task": "reacher_hardest"}, 2)
    with pytest.raises(InputError, match="num_envs=0"):
        VectorEnv(REACHER, 0)
    with pytest.raises(InputError, match=r"environment\.size: must be a whole number, found '64'"):
        VectorEnv({**REACHER, "size": "64"}, 2)


def test_a_dead_worker_is_reported_and_close_ends_the_rest():
    env = VectorEnv(PENDULUM, 2, processes=2)
    env.reset(seed=0)
    pids = [worker.process.pid for worker in env._workers]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="died with exit status -9"):
        env.step(np.zeros((2, 1)))
    env.close()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset(seed=0)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks processes up in /proc")
def test_workers_die_with_their_parent():
    code = (
        f"import time; from envs.vector import VectorEnv; env = VectorEnv({PENDULUM}, 2, 2);"
        "print(*(worker.process.pid for worker in env._workers), flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and not any(gone(pid) for pid in pids)
        parent.kill()
    assert wait_until(lambda: all(gone(pid) for pid in pids))
