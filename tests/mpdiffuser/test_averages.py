"""The averages of the weights in training, and which of them a user gets."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mpdiffuser.averages import Averages


def move(model: nn.Module, averages: Averages, value: float) -> None:
    """An optimiser step that sets all weights to a value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    averages.update()


def averages_of(model: nn.Module, keep: str = "best") -> Averages:
    return Averages(model, 0.9, keep)


@pytest.mark.parametrize(("keep", "expected"), [("best", 1), ("last", 3)])
def test_the_weights_of_the_lowest_held_out_loss(keep: str, expected: int) -> None:
    """Losses 2, 1, nan, 1: the first of the two equal ones; a loss that is not finite is no lowest."""
    model = nn.Linear(2, 1)
    averages, seen = averages_of(model, keep), []
    for step, loss in enumerate((2.0, 1.0, math.nan, 1.0)):
        move(model, averages, float(step))
        averages.validated(step, loss)
        seen.append([weight.clone() for weight in averages.ema.shadow_params])
    assert all(map(torch.equal, averages.kept, seen[expected]))
    assert (averages.best_step, averages.best_loss) == (1, 1.0)
    assert not torch.equal(seen[1][0], seen[3][0])


def test_the_average_before_any_held_out_loss() -> None:
    model = nn.Linear(2, 1)
    averages = averages_of(model)
    move(model, averages, 1.0)
    assert all(map(torch.equal, averages.kept, averages.ema.shadow_params))


def test_weights_in_place_for_a_while() -> None:
    """Restored bit for bit, after an error too; parameters that are not trained stay."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False))
    before = [parameter.clone() for parameter in model.parameters()]
    averages = averages_of(model)
    with pytest.raises(KeyError), averages.in_place([torch.zeros(1, 2), torch.ones(1)]):
        assert model[0].weight.eq(0).all() and model[0].bias.eq(1).all()
        assert torch.equal(model[1].weight, before[2])
        raise KeyError
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("losses", [(), (2.0, 1.0, 3.0)])
def test_a_saved_state_goes_on_as_before(tmp_path: Path, losses: tuple[float, ...]) -> None:
    model = nn.Linear(2, 1)
    averages = averages_of(model)
    for step, loss in enumerate(losses):
        move(model, averages, float(step))
        averages.validated(step, loss)
    loaded = averages_of(model)
    loaded.load(tmp_path, "cpu", averages.save(tmp_path))
    for each in (averages, loaded):
        move(model, each, 7.0)
        each.validated(9, 1.5)  # not below the lowest of the three
    assert all(map(torch.equal, loaded.ema.shadow_params, averages.ema.shadow_params))
    assert all(map(torch.equal, loaded.kept, averages.kept)) and len(loaded.kept) == 2
    assert (loaded.best_step, loaded.best_loss) == (averages.best_step, averages.best_loss)
