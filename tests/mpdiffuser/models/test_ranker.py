"""The ranker: scores, losses and expectiles against plain loops and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule

D, M, H = 3, 2, 8


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ranker_for(randomize, **settings: Any) -> Ranker:
    ranker = randomize(Ranker(D, M, hidden=16, **settings))
    ranker.latents.fit(np.random.default_rng(0).normal(1, 2, (50, D)))
    ranker.rewards.fit(np.random.default_rng(1).normal(0.5, 3, (50, 1)))
    ranker.returns.fit(np.random.default_rng(2).normal(0.5, 3, (50, 1)))
    if ranker.cost_scale is not None:
        ranker.cost_scale.fit(np.random.default_rng(3).uniform(0, 2, (50, 1)))
    return ranker


@pytest.mark.parametrize(("discount", "stride"), [(0.0, 1), (0.9, 1), (0.99, 1), (0.9, 3)])
def test_scores_by_a_plain_loop(randomize, discount: float, stride: int) -> None:
    """With a stride each row stays for so many steps, but that rewards of an episode that ends are lost at rows."""
    ranker = ranker_for(randomize, discount=discount)
    latents, actions = normal(4, 3, H, D), normal(4, 3, H, M, seed=1)
    with torch.no_grad():
        found = ranker.scores(latents, actions, stride=stride)
        assert found.shape == (4, 3)
        for i in range(4):
            for j in range(3):
                score, alive = 0.0, 1.0
                for k in range(H):
                    out = ranker(latents[i, j, k], actions[i, j, k])
                    if k == H - 1:
                        score += discount ** (stride * k) * alive * ranker.value(latents[i, j, k]).item()
                        break
                    for step in range(stride * k, stride * (k + 1)):
                        score += (1 - discount) * discount**step * alive * out["reward"].item()
                    for _ in range(stride):
                        alive *= 1 / (1 + math.exp(-out["continuation_logit"].item()))
                assert found[i, j].item() == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_expected_cost_by_a_plain_loop(randomize) -> None:
    """The planned costs, none below 0, as far as the episode goes on, then the rate from the end on, or what even the
    careful spend there."""
    ranker = ranker_for(randomize, costs=True)
    latents, actions = normal(5, H, D), normal(5, H, M, seed=1)
    steps, rates = [2, H - 1, 3 * H, 3 * H, H], [0.3, 0.3, 50.0, -50.0, 0.0]
    with torch.no_grad():
        found = ranker.expected_cost(latents, actions, torch.tensor(steps), torch.tensor(rates)).tolist()
        for i, left in enumerate(steps):
            total = 0.0
            for k in range(min(left, H - 1)):
                total += max(ranker(latents[i, k], actions[i, k])["cost"].item(), 0.0)
            if left > H - 1:
                total += (left - H + 1) * max(ranker.low_cost_value(latents[i, H - 1]).item(), rates[i])
            assert found[i] == pytest.approx(total, rel=1e-5)


def test_with_costs_a_value_needs_a_cost(randomize) -> None:
    ranker = ranker_for(randomize, costs=True)
    with pytest.raises(InputError, match="cost_to_go"):
        ranker.scores(normal(2, H, D), normal(2, H, M))
    cheap, dear = (ranker.expectile(normal(4, D), 0.5, torch.full((4,), cost)) for cost in (0.0, 2.0))
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
        low_costs = ranker.cost_value(ranker.latents.normalize(batch["latents"])) if costs else None
    scale = ranker.rewards.std.item()
    parts = {"reward_loss": 0.0, "value_loss": 0.0, "continuation_loss": 0.0}
    parts |= {"cost_loss": 0.0, "cost_value_loss": 0.0} if costs else {}
    for i in range(6):
        parts["reward_loss"] += ((out["reward"][i].item() - batch["rewards"][i].item()) / scale) ** 2 / 6
        for k, level in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
            gap = (batch["return_to_go"][i] - expectiles[i, k]).item() / ranker.returns.std.item()
            parts["value_loss"] += (level if gap > 0 else 1 - level) * gap**2 / 30
            if costs:
                gap = (ranker.cost_scale.normalize(batch["cost_to_go"][i, None]) - low_costs[i, k]).item()
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
        assert torch.equal(ranker.value(latents), ranker.expectile(latents, 0.9))
        assert torch.equal(ranker.expectile(latents, 0.0), ranker.expectile(latents, 0.025))  # the lowest of 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"expectiles": 1}, "expectiles: must be at least 2"), ({"optimism": 1.0}, "optimism: must lie between 0 and 1")],
)
def test_a_ranker_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Ranker(D, M, **settings)
