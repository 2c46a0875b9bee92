"""IQL on problems whose values are known."""

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.methods.iql import ImplicitQ
from mpdiffuser.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(100)


@pytest.mark.parametrize(("expectile", "beta"), [(0.7, 1.0), pytest.param(0.9, 3.0, marks=pytest.mark.slow)])
def test_iql_on_two_arms(expectile: float, beta: float) -> None:
    """Action 0.5 pays 1 with share p of the data, action -0.5 pays 0, and then it ends. V is the expectile, which
    solves tau p (1 - V) = (1 - tau) (1 - p) V; the policy's mean weighs the arms by exp(beta (Q - V))."""
    torch.manual_seed(0)
    p, size = 0.25, 64
    good = torch.arange(size) < p * size
    batch = {
        "latents": torch.zeros(size, 1),
        "next_latents": torch.zeros(size, 1),
        "actions": torch.where(good, 0.5, -0.5)[:, None],
        "rewards": good.float(),
        "continuations": torch.zeros(size),
    }
    model = ImplicitQ(1, 1, 16, discount=0.99, expectile=expectile, inverse_temperature=beta, target_rate=0.1)
    optimizer = torch.optim.Adam([q for q in model.parameters() if q.requires_grad], 2e-2)
    for _ in range(250):
        optimizer.zero_grad()
        model.loss(batch, {}, SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    value = expectile * p / (expectile * p + (1 - expectile) * (1 - p))
    assert model.value(torch.zeros(1, 1)).item() == pytest.approx(value, abs=0.02)
    weights = p * np.exp(beta * (1 - value)), (1 - p) * np.exp(-beta * value)
    mean = 0.5 * (weights[0] - weights[1]) / sum(weights)
    assert model(torch.zeros(1, 1)).item() == pytest.approx(mean, abs=0.03)


def test_iql_bootstraps_and_its_target_follows_slowly() -> None:
    """The value of a reward of 1 for ever is 1 / (1 - g)."""
    torch.manual_seed(0)
    model = ImplicitQ(1, 1, 16, discount=0.5, expectile=0.7, inverse_temperature=3.0, target_rate=0.1)
    zeros, ones = torch.zeros(32, 1), torch.ones(32)
    batch = {"latents": zeros, "next_latents": zeros, "actions": zeros, "rewards": ones, "continuations": ones}
    before = [q.clone() for q in model.target.parameters()]
    with torch.no_grad():
        for q in model.q.parameters():
            q.add_(1)
    model.after_step()
    for old, online, new in zip(before, model.q.parameters(), model.target.parameters()):
        torch.testing.assert_close(new, old + 0.1 * (online - old))
    optimizer = torch.optim.Adam([q for q in model.parameters() if q.requires_grad], 2e-2)
    for _ in range(250):
        optimizer.zero_grad()
        model.loss(batch, {}, SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    assert model.value(zeros[:1]).item() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("expectile", [0.0, 1.0])
def test_an_expectile_that_cannot_be(expectile: float) -> None:
    with pytest.raises(InputError, match=rf"baselines\.iql\.expectile: must lie between 0 and 1, found {expectile}"):
        ImplicitQ(1, 1, 16, discount=0.5, expectile=expectile, inverse_temperature=3.0, target_rate=0.1)
