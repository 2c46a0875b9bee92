"""Summaries against closed forms, scipy and rliable."""

import numpy as np
import pytest
from rliable import library, metrics
from scipy import stats

from evaluation.statistics import paired_difference, summary
from mpdiffuser.errors import InputError


def test_closed_forms() -> None:
    result = summary([1.0, 2.0, 3.0, 10.0])
    assert result["mean"] == 4.0
    assert result["standard_error"] == pytest.approx(np.sqrt(((9 + 4 + 1 + 36) / 3) / 4))
    assert result["iqm"] == 2.5


@pytest.mark.parametrize("count", [2, 7, 20])
def test_iqm_is_the_trimmed_mean(count: int) -> None:
    returns = np.random.default_rng(count).gamma(2.0, 100.0, count)
    result = summary(returns)
    assert result["iqm"] == pytest.approx(stats.trim_mean(returns, 0.25))
    assert result["standard_error"] == pytest.approx(stats.sem(returns))
    low, high = result["iqm_interval"]
    assert returns.min() <= low < result["iqm"] < high <= returns.max()


def test_it_agrees_with_rliable() -> None:
    returns = np.random.default_rng(0).normal(500, 50, (40, 1))
    state = np.random.get_state()
    np.random.seed(1)  # rliable uses the global generator
    try:
        means, intervals = library.get_interval_estimates(
            {"x": returns}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=4000
        )
    finally:
        np.random.set_state(state)
    found = summary(returns[:, 0])
    assert found["iqm"] == pytest.approx(means["x"][0])
    np.testing.assert_allclose(found["iqm_interval"], intervals["x"][:, 0], atol=3)


def test_one_episode_and_equal_episodes() -> None:
    assert summary([3.5]) == {"mean": 3.5, "standard_error": 0.0, "iqm": 3.5, "iqm_interval": [3.5, 3.5]}
    assert summary([2.0] * 5)["iqm_interval"] == [2.0, 2.0]


def test_reproducible() -> None:
    returns = np.random.default_rng(3).normal(size=12)
    first = summary(returns)
    assert summary(returns) == first
    assert summary(returns, seed=1)["iqm_interval"] != first["iqm_interval"]


@pytest.mark.parametrize("returns", [[], [1.0, float("nan")]])
def test_refused(returns: list[float]) -> None:
    with pytest.raises(InputError, match="finite"):
        summary(returns)


def test_paired_differences() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 12))
    found = paired_difference(second + first, first)
    assert found["mean"] == pytest.approx(second.mean()) and found["standard_error"] == pytest.approx(stats.sem(second))
    with pytest.raises(InputError, match="12 and 11 episodes"):
        paired_difference(first, first[1:])
