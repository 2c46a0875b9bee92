"""Uniform random actions."""

import numpy as np
import pytest

from mpdiffuser.methods.random_actions import RandomActions, RandomPolicy

M = 2


def test_uniform_actions_of_each_seed() -> None:
    policy = RandomPolicy(M)
    policy.reset(range(4))
    first = np.stack([policy.act(np.zeros((4, 3))) for _ in range(500)])
    assert first.shape == (500, 4, M) and np.abs(first).max() <= 1
    assert abs(first.mean()) < 0.05 and first.std() == pytest.approx(3**-0.5, rel=0.05)
    policy.reset([3])
    alone = np.stack([policy.act(np.zeros((1, 3))) for _ in range(500)])
    np.testing.assert_array_equal(alone[:, 0], first[:, 3])


def test_it_needs_nothing_but_the_number_of_actions(setup_of) -> None:
    policy = RandomActions.policy(setup_of("random"))
    policy.reset([0])
    assert policy.act(np.zeros((1, 99))).shape == (1, M)
