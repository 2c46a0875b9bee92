"""Robots that a policy controls together: disturbances are paired, and change what they say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.robots import Disturbance, Robots, disturb, stacked
from mpdiffuser.controller import Policy

HOPPER = {"kind": "gymnasium", "env_id": "Hopper-v4"}


class Constant(Policy):
    """The same action always; notes which environments were active."""

    def __init__(self, value: float) -> None:
        self.value, self.active = value, []

    def reset(self, seeds: Sequence[int]) -> None:
        self.count = len(seeds)

    def act(self, observations: Any, active: np.ndarray | None = None) -> np.ndarray:
        assert observations.shape == (self.count, 11) and active is not None
        self.active.append(active.copy())
        return np.full((self.count, 3), self.value, np.float32)


def test_an_episode_depends_on_its_seed_alone() -> None:
    noisy, policy = Disturbance(noise=0.3, push=0.5), Constant(0.1)
    together = Robots(HOPPER, 3).run(policy, [5, 6, 7], noisy)
    alone = Robots(HOPPER, 1).run(Constant(0.1), [6], noisy)[0]
    np.testing.assert_array_equal(together[1]["actions"], alone["actions"])
    np.testing.assert_array_equal(stacked(together[1]["observations"]), stacked(alone["observations"]))
    assert together[1]["terminated"] and len(stacked(alone["observations"])) == len(alone["rewards"]) + 1
    lengths = [len(one["rewards"]) for one in together]
    assert [int(sum(active[i] for active in policy.active)) for i in range(3)] == lengths


def test_all_policies_meet_the_same_noise() -> None:
    first, second = (
        Robots(HOPPER, 1).run(Constant(value), [3], Disturbance(noise=0.2), steps=5)[0] for value in (0.0, 0.1)
    )
    np.testing.assert_allclose(second["actions"] - first["actions"], 0.1, atol=1e-6)
    assert 0.05 < first["actions"].std() < 0.5


def test_a_push_changes_the_velocities_by_its_size() -> None:
    env = Robots(HOPPER, 1).envs[0]
    env.reset(seed=0)
    before, random, changes = env.data.qvel.copy(), np.random.default_rng(0), []
    for _ in range(2000):
        env.data.qvel[:] = before
        action = disturb(env, np.full(3, 0.5, np.float32), Disturbance(push=0.7, chance=0.25), random)
        np.testing.assert_array_equal(action, np.float32(0.5))
        changes.append(env.data.qvel - before)
    pushed = np.array([change.any() for change in changes])
    assert 0.2 < pushed.mean() < 0.3
    np.testing.assert_allclose(np.array(changes)[pushed].std(), 0.7, rtol=0.05)


def test_nothing_is_disturbed() -> None:
    assert str(Disturbance()) == "nothing" and str(Disturbance(0.3, 0.5)) == "noise 0.3, pushes 0.5"
    found = Robots(HOPPER, 1).run(Constant(0.25), [0], steps=4)[0]
    np.testing.assert_array_equal(found["actions"], np.full((4, 3), 0.25, np.float32))
