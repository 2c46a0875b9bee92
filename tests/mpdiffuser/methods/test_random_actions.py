"""Uniform random actions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mpdiffuser.methods.random_actions import RandomActions, RandomPolicy

M = 2


def test_uniform_actions_of_each_seed() -> None:
    policy = RandomPolicy(np.full(M, -1), np.ones(M))
    policy.reset(range(4))
    first = np.stack([policy.act(np.zeros((4, 3))) for _ in range(500)])
    assert first.shape == (500, 4, M) and np.abs(first).max() <= 1
    assert abs(first.mean()) < 0.05 and first.std() == pytest.approx(3**-0.5, rel=0.05)
    policy.reset([3])
    alone = np.stack([policy.act(np.zeros((1, 3))) for _ in range(500)])
    np.testing.assert_array_equal(alone[:, 0], first[:, 3])


def test_their_range_is_the_environments_or_else_the_datas(setup_of) -> None:
    setup = setup_of("random")
    data = setup.pipeline.action_bounds
    space = SimpleNamespace(low=np.array([5.0, -np.inf]), high=np.array([7.0, np.inf]))
    for given, low, high in (
        (None, data.low, data.high),
        (space, [5.0, data.low[1]], [7.0, data.high[1]]),
    ):
        policy = RandomActions.policy(replace(setup, action_space=given))
        policy.reset([0])
        drawn = np.concatenate([policy.act(np.zeros((1, 99))) for _ in range(300)])
        assert drawn.shape == (300, M)
        for found, bound in ((drawn.min(0), low), (drawn.max(0), high)):
            np.testing.assert_allclose(found, bound, atol=0.05 * np.subtract(high, low).max())
        assert (drawn >= low).all() and (drawn <= high).all()
