"""The networks: saving, shapes, losses and scores against plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpdiffuser.models.cloning import BehaviourCloning
from scipy.stats import kstest

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hold
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.models.unet import TemporalUNet
from mpdiffuser.schedule import PREDICTIONS, NoiseSchedule

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of_windows(batch: int = 4, valid: int = H) -> dict[str, torch.Tensor]:
    """Windows whose first `valid` rows are real; no action is taken at the last of them."""
    rows = torch.arange(H).expand(batch, H)
    return {
        "latents": normal(batch, H, D, seed=1),
        "actions": normal(batch, H, M, seed=2),
        "mask": (rows < valid).float(),
        "action_mask": (rows < valid - 1).float(),
        "condition": normal(batch, 1, seed=3),
    }


# saving and loading


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Planner(**SIZES, condition_dim=2), (normal(2, H, D + M), torch.tensor([0, 99]), normal(2, 2), torch.ones(2))),
        (Dynamics(**SIZES), (normal(2, H, D + M), torch.tensor([0, 99]))),
        (Ranker(D, M, hidden=16, costs=True), (normal(2, H, D), normal(2, H, M))),
        (BehaviourCloning(D, M, hidden=16), (normal(2, D),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_saving_and_loading(randomize, tmp_path, model: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    randomize(model)
    for name in ("latents", "rewards"):
        if hasattr(model, name):
            getattr(model, name).fit(np.random.default_rng(0).normal(3, 2, (20, getattr(model, name).config["dim"])))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    before, after = model(*inputs), loaded(*inputs)
    pairs = [(before[key], after[key]) for key in before] if isinstance(before, dict) else [(before, after)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".safetensors"]


# normaliser


def test_normalizer(tmp_path) -> None:
    rows = np.random.default_rng(0).normal([5, -2, 1000], [0.1, 3, 20], (500, 3))
    normalizer = Normalizer(3).fit(rows)
    x = torch.from_numpy(rows.astype(np.float32))
    scaled = normalizer.normalize(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(normalizer.denormalize(scaled), x, rtol=1e-5, atol=1e-5)
    low, high = normalizer.bounds()
    torch.testing.assert_close(low, scaled.min(0).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high, scaled.max(0).values, rtol=1e-4, atol=1e-4)
    normalizer.save_pretrained(tmp_path)
    assert torch.equal(Normalizer.from_pretrained(tmp_path).normalize(x), scaled)


@pytest.mark.parametrize("value", [0.0, 1.0, -1234.567, 1e6])
def test_a_constant_dimension_is_centred_and_not_blown_up(value: float) -> None:
    rows = np.full((100, 2), value, np.float32)
    rows[:, 1] = np.arange(100)
    normalizer = Normalizer(2).fit(rows)
    scaled = normalizer.normalize(torch.from_numpy(rows))
    assert scaled[:, 0].abs().max() < 1e-6
    off = normalizer.normalize(torch.tensor([[value + 0.5, 0.0]]))[0, 0]
    assert off == pytest.approx(0.5, abs=0.1)
    assert normalizer.std[0] == 1


@pytest.mark.parametrize("cast", [lambda n: n.half(), lambda n: n.to(torch.float16), lambda n: n.bfloat16()])
def test_a_cast_leaves_the_normalizer_exact(cast) -> None:
    normalizer = Normalizer(1).fit(np.array([[1234.567], [1240.0]]))
    mean = normalizer.mean.clone()
    holder = torch.nn.ModuleDict({"normalizer": normalizer, "linear": torch.nn.Linear(1, 1)})
    cast(holder)
    assert holder["linear"].weight.dtype != torch.float32
    assert normalizer.mean.dtype == torch.float32
    assert torch.equal(normalizer.mean, mean)


def test_normalizer_is_not_trained() -> None:
    assert not any(parameter.requires_grad for parameter in Normalizer(3).parameters())


# marginals


def test_marginals_are_uniform_with_unit_deviation(tmp_path) -> None:
    rows = np.random.default_rng(0).gamma([1, 5], [1, 30], (20_000, 2))
    marginals = Marginals(2).fit(rows)
    x = torch.from_numpy(rows.astype(np.float32))
    scaled = marginals.normalize(x)
    for column in range(2):
        assert kstest(scaled[:, column].numpy(), "uniform", (-(3**0.5), 12**0.5)).statistic < 0.005
        order = np.argsort(rows[:, column])
        assert (np.diff(scaled[order, column]) >= 0).all()
    torch.testing.assert_close(marginals.denormalize(scaled), x, rtol=1e-4, atol=1e-3)
    low, high = marginals.bounds()
    torch.testing.assert_close(low, torch.full((2,), -(3**0.5)))
    torch.testing.assert_close(high, torch.full((2,), 3**0.5))
    torch.testing.assert_close(marginals.normalize(torch.tensor([-1e9, 1e9])), torch.tensor([-(3**0.5), 3**0.5]))
    marginals.save_pretrained(tmp_path)
    assert torch.equal(Marginals.from_pretrained(tmp_path).normalize(x), scaled)


@pytest.mark.parametrize("knots", [2, 3, 257])
def test_marginals_lie_where_numpy_says(knots: int) -> None:
    rows = np.random.default_rng(1).normal(size=(999, 1))
    marginals, levels = Marginals(1, knots).fit(rows), np.linspace(0, 1, knots)
    x = np.random.default_rng(2).normal(size=(4, 50, 1))
    expected = (np.interp(x, np.quantile(rows, levels), levels) - 0.5) * 12**0.5
    np.testing.assert_allclose(marginals.normalize(torch.from_numpy(x).float()), expected, atol=1e-4)
    back = np.interp(x / 12**0.5 + 0.5, levels, np.quantile(rows, levels))
    np.testing.assert_allclose(marginals.denormalize(torch.from_numpy(x).float()), back, atol=1e-4)


def test_equal_values_get_their_mean_rank() -> None:
    rows = np.concatenate([np.zeros(600), np.full(400, 2.0)])  # a sparse reward
    zero, two = (Marginals(1, 1001).fit(rows).normalize(torch.tensor([[0.0], [2.0]])) / 12**0.5 + 0.5)[:, 0]
    assert zero.item() == pytest.approx(0.3, abs=2e-3) and two.item() == pytest.approx(0.8, abs=2e-3)
    constant = Marginals(1).fit(np.full(10, 7.0))
    assert constant.normalize(torch.tensor([7.0])).item() == pytest.approx(0, abs=1e-6)
    assert constant.denormalize(torch.tensor([1.0])).item() == 7


def test_a_cast_leaves_the_marginals_exact() -> None:
    marginals = Marginals(1).fit(np.linspace(0, 1, 300))
    kept = marginals.points.clone()
    assert torch.equal(marginals.half().points, kept)


# U-Net


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2), (2, 4), (1, 1, 2, 2)])
@pytest.mark.parametrize("times", [2, 3, 5])
def test_unet_keeps_the_horizon(multipliers: tuple[int, ...], times: int) -> None:
    horizon = times * 2 ** (len(multipliers) - 1)
    unet = TemporalUNet(5, 3, width=8, multipliers=multipliers, embedding=16)
    assert unet(normal(2, horizon, 5), unet.modulation(normal(2, 16))).shape == (2, horizon, 3)


def test_every_row_of_the_unet_sees_every_other(randomize) -> None:
    unet = randomize(TemporalUNet(5, 3, width=8, multipliers=(1, 2, 2), embedding=16))
    x = normal(1, 16, 5).requires_grad_()
    unet(x, unet.modulation(normal(1, 16)))[0, 0].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", [Planner, Dynamics])
@pytest.mark.parametrize("horizon", [0, 4, 15, 30, -8])
def test_horizons_that_cannot_be(kind: type, horizon: int) -> None:
    with pytest.raises(InputError, match=rf"horizon: must be a multiple of 4, at least 8.*found {horizon}"):
        kind(D, M, horizon=horizon, width=8, multipliers=(1, 2, 2), embedding=16)


@pytest.mark.parametrize("kind", [Planner, Dynamics])
def test_other_sizes_that_cannot_be(kind: type) -> None:
    with pytest.raises(InputError, match=r"prediction: must be one of epsilon, sample, v_prediction.*'noise'"):
        kind(**SIZES, prediction="noise")
    with pytest.raises(InputError, match=r"width: must be a multiple of 8.*found 12"):
        kind(**{**SIZES, "width": 12})


# losses of the denoisers


@pytest.mark.parametrize("kind", [Planner, Dynamics])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("valid", [2, 5, H])
def test_denoising_loss_by_hand(randomize, kind: type, prediction: str, valid: int) -> None:
    schedule = NoiseSchedule(100)
    model = randomize(kind(**SIZES, prediction=prediction))
    batch = batch_of_windows(valid=valid)
    random = model.draw(4, schedule, torch.Generator().manual_seed(0))
    levels, noise = random["levels"], random["noise"]
    clean = torch.cat([batch["latents"], batch["actions"]], -1)
    alpha = schedule.alpha_bar[levels].sqrt().float()[:, None, None]
    sigma = (1 - schedule.alpha_bar[levels]).sqrt().float()[:, None, None]
    noisy = alpha * clean + sigma * noise
    noisy[:, 0, :D] = clean[:, 0, :D]
    with torch.no_grad():
        inputs = (batch["condition"], random["keep"]) if kind is Planner else ()
        output = model(noisy, levels, *inputs)
        found = model.loss(batch, random, schedule)["loss"].item()
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[prediction]
    channels = D + M if kind is Planner else D
    per_window = []
    for b in range(4):
        total = weights = 0.0
        for k in range(H):
            for c in range(channels):
                weight = float(0 < k < valid) if c < D else float(k < valid - 1) * (50.0 if k == 0 else 1.0)
                total += weight * (output[b, k, c] - wanted[b, k, c]).item() ** 2
                weights += weight
        per_window.append(total / weights)
    assert found == pytest.approx(sum(per_window) / 4, rel=1e-4)


@pytest.mark.parametrize("kind", [Planner, Dynamics])
def test_padded_rows_are_no_targets(kind: type) -> None:
    schedule, valid = NoiseSchedule(100), 5
    model = kind(**SIZES)  # fresh, its output is the same whatever it sees, so only targets matter
    batch = batch_of_windows(valid=valid)
    random = model.draw(4, schedule, torch.Generator().manual_seed(0))
    loss = model.loss(batch, random, schedule)["loss"]
    padded = {**batch, "latents": batch["latents"].clone(), "actions": batch["actions"].clone()}
    padded["latents"][:, valid:] += 5
    padded["actions"][:, valid - 1 :] += 5
    assert torch.equal(model.loss(padded, random, schedule)["loss"], loss)
    padded["latents"][:, valid - 1] += 5
    assert model.loss(padded, random, schedule)["loss"] > loss + 0.1


def test_dropped_conditions_do_not_matter(randomize) -> None:
    planner = randomize(Planner(**SIZES))
    x, levels = normal(2, H, D + M), torch.tensor([3, 50])
    for keep, same in ((torch.zeros(2), True), (torch.ones(2), False)):
        outputs = [planner(x, levels, condition, keep) for condition in (normal(2, 1), normal(2, 1, seed=9))]
        assert torch.equal(*outputs) == same
    free, zero = (planner(x, levels, torch.zeros(2, 1), keep) for keep in (torch.zeros(2), torch.ones(2)))
    assert not torch.allclose(free, zero)  # "no wish" is not "the wish 0"


def test_share_of_dropped_conditions() -> None:
    keep = Planner(**SIZES, dropout=0.25).draw(20_000, NoiseSchedule(100), torch.Generator().manual_seed(0))["keep"]
    assert set(keep.tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(0.75, abs=0.01)


def test_draw_covers_all_levels_and_repeats() -> None:
    model, schedule = Dynamics(**SIZES), NoiseSchedule(10)
    first, second = (model.draw(500, schedule, torch.Generator().manual_seed(4)) for _ in range(2))
    assert set(first["levels"].tolist()) == set(range(10))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_levels_are_the_highest_of_several_draws(draws: int) -> None:
    """Of n even draws from 0..T-1 the highest is at most t with probability ((t + 1) / T)^n."""
    planner, schedule = Planner(**SIZES, level_draws=draws), NoiseSchedule(10)
    levels = planner.draw(50_000, schedule, torch.Generator().manual_seed(3))["levels"]
    for t in range(10):
        assert (levels <= t).float().mean().item() == pytest.approx(((t + 1) / 10) ** draws, abs=0.01)
    with pytest.raises(InputError, match=r"planner\.level_draws: must be at least 1, found 0"):
        Planner(**SIZES, level_draws=0)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.data())
def test_hold_puts_what_is_known_in_its_place(horizon: int, d: int, m: int, with_goal: bool, data) -> None:
    count = data.draw(st.integers(0, horizon))
    x, present, goal = normal(2, horizon, d + m), normal(2, d, seed=1), normal(2, d, seed=2)
    committed = normal(2, count, m, seed=3)
    before = x.clone()
    held = hold(x, present, goal if with_goal else None, committed if count else None)
    assert torch.equal(x, before)
    for k in range(horizon):
        state = present if k == 0 else goal if with_goal and k == horizon - 1 else x[:, k, :d]
        assert torch.equal(held[:, k, :d], state)
        assert torch.equal(held[:, k, d:], committed[:, k] if k < count else x[:, k, d:])


# ranker and cloning


def ranker_for(randomize, **settings: Any) -> Ranker:
    ranker = randomize(Ranker(D, M, hidden=16, **settings))
    ranker.latents.fit(np.random.default_rng(0).normal(1, 2, (50, D)))
    ranker.rewards.fit(np.random.default_rng(1).normal(0.5, 3, (50, 1)))
    ranker.returns.fit(np.random.default_rng(2).normal(0.5, 3, (50, 1)))
    if ranker.prices is not None:
        ranker.prices.fit(np.random.default_rng(3).uniform(0, 2, (50, 1)))
    return ranker


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.99])
def test_scores_by_a_plain_loop(randomize, discount: float) -> None:
    ranker = ranker_for(randomize, discount=discount)
    latents, actions = normal(4, 3, H, D), normal(4, 3, H, M, seed=1)
    with torch.no_grad():
        found = ranker.scores(latents, actions)
        assert found.shape == (4, 3)
        for i in range(4):
            for j in range(3):
                score, alive = 0.0, 1.0
                for k in range(H):
                    out = ranker(latents[i, j, k], actions[i, j, k])
                    if k == H - 1:
                        score += discount**k * alive * ranker.worth(latents[i, j, k]).item()
                        break
                    score += (1 - discount) * discount**k * alive * out["reward"].item()
                    alive *= 1 / (1 + math.exp(-out["continuation_logit"].item()))
                assert found[i, j].item() == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_expense_by_a_plain_loop(randomize) -> None:
    """The planned costs, none below 0, as far as the episode goes on, then the rate from the end on, or what even the
    careful spend there."""
    ranker = ranker_for(randomize, costs=True)
    latents, actions = normal(5, H, D), normal(5, H, M, seed=1)
    steps, rates = [2, H - 1, 3 * H, 3 * H, H], [0.3, 0.3, 50.0, -50.0, 0.0]
    with torch.no_grad():
        found = ranker.expense(latents, actions, torch.tensor(steps), torch.tensor(rates)).tolist()
        for i, left in enumerate(steps):
            total = 0.0
            for k in range(min(left, H - 1)):
                total += max(ranker(latents[i, k], actions[i, k])["cost"].item(), 0.0)
            if left > H - 1:
                total += (left - H + 1) * max(ranker.careful_cost(latents[i, H - 1]).item(), rates[i])
            assert found[i] == pytest.approx(total, rel=1e-5)


def test_with_costs_a_value_needs_a_price(randomize) -> None:
    ranker = ranker_for(randomize, costs=True)
    with pytest.raises(InputError, match="cost_to_go"):
        ranker.scores(normal(2, H, D), normal(2, H, M))
    cheap, dear = (ranker.expectile(normal(4, D), 0.5, torch.full((4,), price)) for price in (0.0, 2.0))
    assert (cheap != dear).all()


def test_expectiles_between_levels(randomize) -> None:
    """Each row at its own level, linear between the levels (k + 1/2) / K."""
    ranker = ranker_for(randomize, expectiles=5)
    levels = torch.tensor([0.0, 0.1, 0.42, 0.97])
    with torch.no_grad():
        found, known = ranker.expectile(normal(4, D), levels), ranker.expectiles(normal(4, D)).numpy()
    between = [np.interp(q, [0.1, 0.3, 0.5, 0.7, 0.9], np.sort(row)) for q, row in zip(levels, known)]
    np.testing.assert_allclose(found, between, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rollouts_rank_last(randomize, bad: float) -> None:
    latents, actions = normal(5, H, D), normal(5, H, M, seed=1)
    latents[2, 4, 1] = bad
    scores = ranker_for(randomize).scores(latents, actions)
    assert scores[2] == -math.inf
    assert scores.isfinite().sum() == 4


@pytest.mark.parametrize("costs", [False, True])
def test_ranker_loss_by_hand(randomize, costs: bool) -> None:
    ranker = ranker_for(randomize, costs=costs, expectiles=5)
    batch = {
        "latents": normal(6, D),
        "actions": normal(6, M, seed=1),
        "rewards": normal(6, seed=2),
        "continuations": torch.tensor([1.0, 1, 0, 1, 0, 1]),
        "return_to_go": 2 * normal(6, seed=4),
    }
    batch |= {"costs": normal(6, seed=3), "cost_to_go": normal(6, seed=5).abs()} if costs else {}
    with torch.no_grad():
        losses = ranker.loss(batch, {}, NoiseSchedule())
        out = ranker(batch["latents"], batch["actions"])
        expectiles = ranker.expectiles(batch["latents"], batch.get("cost_to_go"))
        prices = ranker.cost_value(ranker.latents.normalize(batch["latents"])) if costs else None
    scale = ranker.rewards.std.item()
    parts = {"reward_loss": 0.0, "value_loss": 0.0, "continuation_loss": 0.0}
    parts |= {"cost_loss": 0.0, "cost_value_loss": 0.0} if costs else {}
    for i in range(6):
        parts["reward_loss"] += ((out["reward"][i].item() - batch["rewards"][i].item()) / scale) ** 2 / 6
        for k, level in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
            gap = (batch["return_to_go"][i] - expectiles[i, k]).item() / ranker.returns.std.item()
            parts["value_loss"] += (level if gap > 0 else 1 - level) * gap**2 / 30
            if costs:
                gap = (ranker.prices.normalize(batch["cost_to_go"][i, None]) - prices[i, k]).item()
                parts["cost_value_loss"] += (level if gap > 0 else 1 - level) * abs(gap) / 30
        survival = 1 / (1 + math.exp(-out["continuation_logit"][i].item()))
        parts["continuation_loss"] -= math.log(survival if batch["continuations"][i] else 1 - survival) / 6
        if costs:
            parts["cost_loss"] += (out["cost"][i].item() - batch["costs"][i].item()) ** 2 / 6
    assert set(losses) == {"loss", *parts}
    for key, value in parts.items():
        assert losses[key].item() == pytest.approx(value, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(sum(parts.values()), rel=1e-4)


def test_expectiles_become_those_of_the_data() -> None:
    """Two kinds of states, the returns of the one uniform in 0..1, of the other in 5..7.

    The expectile e of level t of the uniform in 0..1 solves t (1 - e)^2 = (1 - t) e^2 (Newey and Powell 1987).
    """
    ranker = Ranker(1, M, hidden=16)
    spread = (torch.arange(64).float() + 0.5) / 64
    batch = {
        "latents": torch.cat([-torch.ones(64, 1), torch.ones(64, 1)]),
        "actions": torch.zeros(128, M),
        "rewards": torch.zeros(128),
        "continuations": torch.ones(128),
        "return_to_go": torch.cat([spread, 5 + 2 * spread]),
    }
    ranker.returns.fit(batch["return_to_go"].numpy())
    optimizer = torch.optim.Adam([p for p in ranker.parameters() if p.requires_grad], 0.01)
    for _ in range(400):
        optimizer.zero_grad()
        ranker.loss(batch, {}, NoiseSchedule())["loss"].backward()
        optimizer.step()
    latents = torch.tensor([[-1.0], [1.0]])
    with torch.no_grad():
        for level in (0.1, 0.33, 0.5, 0.9):
            expectile = level**0.5 / (level**0.5 + (1 - level) ** 0.5)
            found = ranker.expectile(latents, level).tolist()
            assert found == pytest.approx([expectile, 5 + 2 * expectile], abs=0.1)
        assert torch.equal(ranker.worth(latents), ranker.expectile(latents, 0.9))
        assert torch.equal(ranker.expectile(latents, 0.0), ranker.expectile(latents, 0.025))  # the lowest of 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"expectiles": 1}, "expectiles: must be at least 2"), ({"optimism": 1.0}, "optimism: must lie between 0 and 1")],
)
def test_a_ranker_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Ranker(D, M, **settings)


def test_cloning_stays_in_range_and_scores_its_error(randomize) -> None:
    policy = randomize(BehaviourCloning(D, M, hidden=16), scale=3.0)
    latents, actions = 10 * normal(50, D), normal(50, M, seed=1).tanh()
    with torch.no_grad():
        chosen = policy(latents)
        loss = policy.loss({"latents": latents, "actions": actions}, {}, NoiseSchedule())["loss"].item()
    assert chosen.abs().max() <= 1
    assert loss == pytest.approx(np.mean((chosen.numpy() - actions.numpy()) ** 2), rel=1e-5)
