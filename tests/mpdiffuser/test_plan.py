"""The choice among candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.plan import choose


def test_choosing_under_a_budget() -> None:
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [np.nan, 2, 1], [-np.inf, -np.inf, -np.inf]])
    costs = np.array([[9.0, 4, 1], [9, 7, 6], [0, 5, 4], [3, 1, 2]])
    actions = np.zeros((4, 3, 1))
    assert choose(scores, actions, 0).tolist() == [0, 0, 1, 0]
    for temperature in (0, 1):
        assert choose(scores, actions, temperature, costs, np.array([5.0, 5, 3, 5])).tolist() == [1, 2, 2, 0]


@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_candidate_that_the_good_ones_agree_on(seed: int, n: int, temperature: float) -> None:
    """Against the definition, a candidate at a time."""
    random = np.random.default_rng(seed)
    scores, actions = random.normal(size=(3, n)), random.normal(size=(3, n, 2))
    scores[0, 0] = -np.inf
    costs, budget = random.uniform(0, 2, (3, n)), np.array([3.0, 3.0, 1.0])
    chosen = choose(scores, actions, temperature, costs, budget)
    for row in range(3):
        able = [i for i in range(n) if np.isfinite(scores[row, i]) and costs[row, i] <= budget[row]]
        if not able:
            continue
        known = scores[row, able]
        weights = np.exp((known - known.max()) / (temperature * max(known.std(), 1e-12)))
        risk = [sum(w * np.linalg.norm(actions[row, i] - actions[row, j]) for w, j in zip(weights, able)) for i in able]
        assert risk[able.index(chosen[row])] == pytest.approx(min(risk))


def test_agreement_between_the_best_and_the_most() -> None:
    """Three alike and a fourth, better by a little or by a lot of the ranker's own spread."""
    actions = np.array([[[0.0], [0.1], [0.2], [0.9]]])
    scores = np.array([[1.0, 1.1, 1.0, 1.5]])
    assert choose(scores, actions, 0).tolist() == [3]
    assert choose(scores, actions, 0.1).tolist() == [3]
    assert choose(scores, actions, 1e6)[0] in (1, 2)  # the medians of four
