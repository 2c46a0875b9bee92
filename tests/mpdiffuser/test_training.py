"""From latent episodes to models: the ranker's rounds and the planner's targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from experiments.reliability.fuzz import small_pipeline
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import read_json
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.training import occupancy, planner_weights, save_whole, train_ours, train_ranker, within
from mpdiffuser.windows import step_rows, to_go

START, CROSSING, GOOD, BAD, ELSEWHERE = range(5)
DISCOUNT = 0.9


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


@pytest.mark.parametrize(("rounds", "trace", "worth"), [(1, 0.5, 0.0), (4, 0.0, 0.632), (4, 0.5, 0.317)])
def test_rounds_put_beginnings_and_ends_together(tmp_path: Path, rounds: int, trace: float, worth: float) -> None:
    """What START is worth: nothing as logged. But from CROSSING half went to GOOD, so it is worth c = 0.8 g, the
    0.8-expectile of {0, g}. Two rows are START, with the returns g (1 - trace) c = a and, one step before,
    b = g ((1 - trace) V + trace a); V is their expectile: 0.8 (a - V) = 0.2 (V - b).
    """
    episodes = crossroads()
    trained: list[str] = []

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        trained.append(name)
        config = TrainConfig(steps=150, batch_size=64, learning_rate=3e-3, warmup=5, ema_decay=0.95)
        return Trainer(name, model, data, validation, config, tmp_path / name, Accelerator(cpu=True)).train()

    torch.manual_seed(0)
    ranker = Ranker(5, 1, hidden=32, discount=DISCOUNT, optimism=0.8)
    evenly = np.ones(len(episodes.episode_of_row))
    returns = train_ranker(ranker, (episodes, episodes), (None, None), (evenly, evenly), rounds, trace, fit)
    assert trained == [*(f"ranker/round_{k}" for k in range(1, rounds)), "ranker"]
    if rounds == 1:
        np.testing.assert_allclose(returns[0], to_go(episodes["rewards"], episodes, DISCOUNT))
    found = ranker.values(np.eye(5))
    assert found[START] == pytest.approx(worth, abs=0.06)
    assert found[GOOD] == pytest.approx(1, abs=0.02)
    assert found[BAD] == pytest.approx(0, abs=0.02)


def test_a_pipeline_folder_is_replaced_by_other_models_or_facts_and_by_nothing_else(tmp_path: Path) -> None:
    folder, pipeline = tmp_path / "pipeline", small_pipeline()
    save_whole(pipeline, {}, folder)
    first = pipeline.config["info"]

    def saved(**facts: Any) -> dict[str, Any]:
        pipeline.register_to_config(info=dict(first) | facts)
        save_whole(pipeline, {}, folder)
        return read_json(folder / "model_index.json")["info"]

    assert "commit" not in saved(commit="another")  # as it was
    assert saved(cost_margins=[1.0])["cost_margins"] == [1.0]
    with torch.no_grad():
        next(pipeline.planner.parameters()).add_(1)
    before = (folder / "planner").stat().st_ino
    saved(cost_margins=[1.0])
    assert (folder / "planner").stat().st_ino != before


def test_the_episodes_within_a_cost_limit(make_episodes) -> None:
    """Those that cost no more, and where there are none the cheapest."""
    episodes = make_episodes([5, 3, 4], costs=True)
    totals = [episodes["costs"][episodes.rows(e)].sum() for e in range(3)]
    middle = sorted(totals)[1]
    (some,), (least,) = within([episodes], middle + 1e-4), within([episodes], 0.0)
    assert len(some) == 2 and len(least) == 1
    np.testing.assert_array_equal(least["costs"], episodes["costs"][episodes.rows(int(np.argmin(totals)))])


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_weights_by_their_definition(make_episodes, randomize, trace: float) -> None:
    """One-step errors of the values, summed with (g trace)^k (Schulman et al. 2016, eq. 16), exponentiated."""
    parts = (make_episodes([7, 5], terminated=[1]), make_episodes([4], seed=1))
    ranker = randomize(Ranker(3, 2, hidden=8, discount=DISCOUNT), scale=1.0)
    found = planner_weights(ranker, parts, (None, None), trace, 0.7, 0.5)
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
                    each[t] += (DISCOUNT * trace) ** (k - t) * error
        advantages.append(each)
    steps = [np.delete(np.arange(len(a)), part.offsets[1:] - 1) for a, part in zip(advantages, parts)]
    scale = 0.7 * advantages[0][steps[0]].std()
    for weights, advantage, rows in zip(found, advantages, steps):
        np.testing.assert_allclose(np.log(weights[rows]), np.clip(advantage[rows] / scale, -8, 0.5), atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_occupancy_by_a_plain_loop(make_episodes, share: float) -> None:
    """1 on average over the steps; of a share g^t, t the steps since the episode's start."""
    episodes = make_episodes([7, 5], terminated=[1])
    found, rows = occupancy(episodes, 0.8, share), step_rows(episodes)
    discounted = [0.8**t for length in (7, 5) for t in range(length)]
    expected = [1 - share + share * d / (sum(discounted) / 12) for d in discounted]
    np.testing.assert_allclose(found[rows], expected)
    assert found[rows].mean() == pytest.approx(1)


def test_dynamics_see_starts_as_often_as_occupancy_says(make_episodes) -> None:
    """Of 12 windows as many start at step t as g^t's share of them is, within one, whatever the rewards."""
    discount = 0.6
    cfg = load("state", ["task=d4rl/hopper-medium-v2", "occupancy=1", f"discount={discount}", "horizon=4", "rounds=1"])
    episodes = make_episodes([12], terminated=[])
    dims = {"latent_dim": episodes["observations"].shape[1], "action_dim": episodes["actions"].shape[1]}
    normalizers = (Normalizer(dims["latent_dim"]), Normalizer(dims["action_dim"]))
    seen: dict[str, Any] = {}

    def fit(name: str, model: Any, data: Any, validation: Any, **more: Any) -> Any:
        seen[name] = data
        return model

    parts = (episodes, episodes)
    train_ours(cfg, parts, (None, None), dims, normalizers, {"planner", "dynamics"}, fit, Accelerator(cpu=True))
    counts = np.bincount(seen["dynamics"].starts.numpy(), minlength=12)
    due = discount ** np.arange(12)
    assert np.abs(counts - 12 * due / due.sum()).max() < 1  # drawn evenly, t = 0 is short of 3.8
