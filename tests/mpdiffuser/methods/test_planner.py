"""The planner's data: rounds of values, and weights by advantage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.episodes import Episodes
from mpdiffuser.methods import TrainingData
from mpdiffuser.methods.planner import (
    advantage_weights,
    episode_weights,
    equalizing_power,
    fit_ranker,
    planner_windows,
)
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import to_go

START, CROSSING, GOOD, BAD, ELSEWHERE = range(5)
DISCOUNT = 0.9


def data_of(parts: tuple[Episodes, Episodes], **settings: Any) -> TrainingData:
    """Training data of these parts as they are."""
    dims = [parts[0][key].shape[1] for key in ("observations", "actions")]
    return TrainingData({"discount": DISCOUNT, "stride": 1, **settings}, parts, *map(Normalizer, dims), NoiseSchedule())


def crossroads(repeats: int = 8, tail: int = 12) -> Episodes:
    """All episodes from START cross to BAD (reward 0); those from ELSEWHERE cross to GOOD (reward 1)."""
    places = [[START, START, CROSSING, *[BAD] * tail], [ELSEWHERE, ELSEWHERE, CROSSING, *[GOOD] * tail]] * repeats
    rows, steps = np.concatenate(places), len(places[0]) - 1
    rewards, ends = (rows == GOOD).astype(np.float32), np.zeros(len(rows), bool)
    offsets = np.arange(len(places) + 1) * (steps + 1)
    ends[offsets[1:] - 2] = True
    arrays = {"observations": np.eye(5, dtype=np.float32)[rows], "actions": np.zeros((len(rows), 1), np.float32)}
    arrays |= {"rewards": rewards, "terminations": np.zeros(len(rows), bool), "truncations": ends}
    return Episodes(arrays, offsets)


@pytest.mark.parametrize(
    ("rounds", "td_lambda", "value"),
    [(1, 0.5, 0.0), (4, 0.5, 0.317), pytest.param(4, 0.0, 0.632, marks=pytest.mark.slow)],
)
def test_rounds_put_beginnings_and_ends_together(tmp_path: Path, rounds: int, td_lambda: float, value: float) -> None:
    """The value of START: 0 as logged. But from CROSSING half went to GOOD, so its value is c = 0.8 g, the
    0.8-expectile of {0, g}. Two rows are START, with the returns g (1 - lambda) c = a and, one step before,
    b = g ((1 - lambda) V + lambda a); V is their expectile: 0.8 (a - V) = 0.2 (V - b).
    """
    episodes = crossroads()
    trained: list[str] = []

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        trained.append(name)
        config = TrainConfig(steps=150, batch_size=64, learning_rate=3e-3, warmup=5, ema_decay=0.95)
        return Trainer(name, model, data, validation, config, tmp_path / name, Accelerator(cpu=True)).train()

    torch.manual_seed(0)
    ranker = Ranker(5, 1, hidden=32, discount=DISCOUNT, optimism=0.8)
    data = data_of((episodes, episodes), rounds=rounds, td_lambda=td_lambda, occupancy=0.0)
    assert fit_ranker(fit, ranker, data) is ranker
    assert trained == [*(f"ranker/round_{k}" for k in range(1, rounds)), "ranker"]
    if rounds == 1:
        np.testing.assert_allclose(data.shared["targets"][0][:, 0], to_go(episodes["rewards"], episodes, DISCOUNT))
    found = ranker.values(np.eye(5))
    assert found[START] == pytest.approx(value, abs=0.06)
    assert found[GOOD] == pytest.approx(1, abs=0.02)
    assert found[BAD] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_weights_by_their_definition(make_episodes, randomize, gae_lambda: float) -> None:
    """One-step errors of the values, summed with (g lambda)^k (Schulman et al. 2016, eq. 16), exponentiated."""
    parts = (make_episodes([7, 5], terminated=[1]), make_episodes([4], seed=1))
    ranker = randomize(Ranker(3, 2, hidden=8, discount=DISCOUNT), scale=1.0)
    found = advantage_weights(ranker, data_of(parts), gae_lambda, 0.7, 0.5)
    advantages = []
    for part in parts:
        values = ranker.values(part["observations"]).astype(float)
        each = np.zeros(len(values))
        for e in range(len(part)):
            rows = part.rows(e)
            last, ends = rows.stop - 1, part["terminations"][rows.stop - 2]
            for t in range(rows.start, last):
                for k in range(t, last):
                    beyond = 0.0 if k + 1 == last and ends else values[k + 1]
                    error = (1 - DISCOUNT) * part["rewards"][k] + DISCOUNT * beyond - values[k]
                    each[t] += (DISCOUNT * gae_lambda) ** (k - t) * error
        advantages.append(each)
    steps = [np.delete(np.arange(len(a)), part.offsets[1:] - 1) for a, part in zip(advantages, parts)]
    scale = 0.7 * advantages[0][steps[0]].std()
    for weights, advantage, rows in zip(found, advantages, steps):
        np.testing.assert_allclose(np.log(weights[rows]), np.clip(advantage[rows] / scale, -8, 0.5), atol=1e-3)


def test_weights_of_episodes_by_their_definition(make_episodes, randomize) -> None:
    parts = (make_episodes([7, 5, 9], terminated=[1]), make_episodes([4], seed=1))
    ranker = randomize(Ranker(3, 2, hidden=8, discount=DISCOUNT), scale=1.0)
    found = episode_weights(ranker, data_of(parts), 0.7, 1.0)
    advantages = []
    for part in parts:
        returns = to_go(part["rewards"], part, DISCOUNT)
        for e in range(len(part)):
            rows = part.rows(e)
            value = ranker.values(part["observations"][rows][:1])[0]
            advantages.append((returns[rows.start] - value, rows.stop - rows.start - 1))
    lengths = np.array([length for _, length in advantages[:3]])
    of_training = np.array([advantage for advantage, _ in advantages[:3]])
    mean = np.average(of_training, weights=lengths)
    scale = 0.7 * np.sqrt(np.average((of_training - mean) ** 2, weights=lengths))
    expected = [np.exp(min((advantage - mean) / scale, 1.0)) for advantage, _ in advantages]
    np.testing.assert_allclose(found[0], np.repeat(expected[:3], lengths + 1), rtol=1e-3)
    np.testing.assert_allclose(found[1], np.full(5, expected[3]), rtol=1e-3)


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=40), st.floats(0, 50))
def test_power_keeps_the_effective_number_of_windows(weights: list[float], least: float) -> None:
    w = np.array(weights)
    power = equalizing_power(w, least)
    number = lambda p: (w**p).sum() ** 2 / (w ** (2 * p)).sum()  # noqa: E731
    assert 0 <= power <= 1
    if number(1) >= least:
        assert power == 1
    elif number(0) <= least:
        assert power == 0
    else:
        assert number(power) == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize(("least", "equal"), [(0, False), (1000, True)])
def test_few_windows_have_equal_weights(make_episodes, randomize, least: int, equal: bool) -> None:
    parts = (make_episodes([30, 20]), make_episodes([10], seed=1))
    settings = {"temperature": 0.1, "bound": 3.0}
    advantage = settings | {"gae_lambda": 0.9, "effective_windows": least}
    data = data_of(parts, advantage=advantage, episode_advantage=settings, horizon=4, occupancy=0.0)
    data.trained["ranker"] = randomize(Ranker(3, 2, hidden=8, discount=DISCOUNT), scale=1.0)
    data.shared |= {"targets": data.logged_targets, "condition": data.logged_condition}
    counts = np.bincount(planner_windows(data, 0).starts)
    assert (sorted(set(counts)) == [0, 1]) is equal  # 0: the final rows


@pytest.mark.parametrize(("lengths", "discount"), [([30, 12], 0.9), ([2, 1], 0.0), ([3000], 0.999)])
def test_default_discount_is_a_third_of_the_longest_episode(make_episodes, lengths: list[int], discount: float) -> None:
    part = make_episodes(lengths)
    assert data_of((part, part), discount=None).discount == pytest.approx(discount)
    assert data_of((part, part), discount=0.5).discount == 0.5
