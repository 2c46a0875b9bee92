"""The weights of the candidates in the executed plan."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.plan import Plan, candidate_weights

BAD = torch.nan, torch.inf, -torch.inf


def test_weights_under_a_budget() -> None:
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1], [torch.nan, 2, 1], [-torch.inf, -torch.inf, -torch.inf]])
    costs = torch.tensor([[9.0, 4, 1], [9, 7, 6], [0, 5, 4], [3, 1, 2]])
    budget = torch.tensor([5.0, 5, 3, 5])
    assert candidate_weights(scores, 0).argmax(1).tolist() == [0, 0, 1, 0]
    assert candidate_weights(scores, 0, costs, budget).argmax(1).tolist() == [1, 2, 2, 0]
    even = candidate_weights(scores, 1e6, costs, budget)
    expected = torch.tensor([[0, 0.5, 0.5], [0, 0, 1], [0, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(even, expected, rtol=0, atol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([0.1, 1.0, 5.0]))
def test_weights_against_their_definition(seed: int, n: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    scores, costs, budget = random.normal(size=(3, n)), random.uniform(0, 2, (3, n)), np.array([3.0, 3.0, 1.0])
    scores[0, 0] = -np.inf
    weights = candidate_weights(*map(torch.from_numpy, (scores,)), temperature, *map(torch.from_numpy, (costs, budget)))
    for row in range(3):
        able = np.isfinite(scores[row]) & (costs[row] <= budget[row])
        if not able.any():
            continue
        known = scores[row, able]
        expected = np.exp((known - known.max()) / (temperature * max(known.std(), 1e-12)))
        np.testing.assert_allclose(weights[row, able], expected / expected.sum(), rtol=1e-6)
        assert (weights[row, ~able] == 0).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_a_bad_score_has_no_weight(bad: float, temperature: float) -> None:
    weights = candidate_weights(torch.tensor([[1.0, bad, 2.0]]), temperature)
    assert weights[0, 1] == 0 and weights.sum() == pytest.approx(1)


def test_the_executed_plan_is_the_weighted_mean() -> None:
    latents, actions = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 1)
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    latents[1, 0] = torch.nan  # no weight
    plan = Plan(latents, actions, torch.zeros(2, 3), weights, 0.0)
    np.testing.assert_allclose(plan.executed_actions, np.einsum("bn,bnhm->bhm", weights, actions), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plan.executed_latents[1], latents[1, 1])
