"""The two systems against their physics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.systems import Car, Pendulum, demonstrations, play

CAR, PENDULUM = Car(), Pendulum()


@given(st.integers(0, 2**31))
def test_the_car_never_stands_in_a_wall(seed: int) -> None:
    states, _ = play(CAR, 20, 30, seed)
    assert states.shape == (20, 30, 4)
    x, y = states[..., 0], states[..., 1]
    assert states[..., :2].abs().max() <= 1
    assert not ((x < 0.4) & (y.abs() < 0.15)).any()
    torch.testing.assert_close(states[..., 2:].norm(dim=-1), torch.ones(20, 30))


def test_the_car_drives_where_it_heads() -> None:
    z = torch.tensor([[0.5, -0.5, 1.0, 0.0]])
    moved = CAR.step(z, torch.tensor([[0.5, 1.0]]))
    expected = [0.5 + 0.085 * math.cos(0.5), -0.5 + 0.085 * math.sin(0.5), math.cos(0.5), math.sin(0.5)]
    torch.testing.assert_close(moved, torch.tensor([expected]))
    against_the_wall = torch.tensor([[-0.5, -0.2, 0.0, 1.0]])
    torch.testing.assert_close(CAR.step(against_the_wall, torch.tensor([[1.0, 0.0]])), against_the_wall)


def test_the_pendulum_swings_with_its_period() -> None:
    """Small swings of a rod of length 1 about the bottom: period 2 pi sqrt(2 l / (3 g))."""
    fine = Pendulum(interval=0.01, substeps=10)
    z = torch.tensor([[math.cos(math.pi - 0.1), math.sin(math.pi - 0.1), 0.0]])
    sides = []
    for _ in range(500):
        sides.append(z[0, 1].item())
        z = fine.step(z, torch.zeros(1, 1))
    crossings = [k for k in range(1, 500) if sides[k - 1] > 0 >= sides[k]]
    period = 0.01 * (crossings[-1] - crossings[0]) / (len(crossings) - 1)
    assert period == pytest.approx(2 * math.pi * math.sqrt(2 / 30), rel=0.01)


@pytest.mark.parametrize("system", [CAR, PENDULUM])
def test_demonstrations_reach_the_goal(system) -> None:
    states, actions = demonstrations(system, 100, 48, 0)
    assert not system.reached(states[:, 0]).any()
    assert system.reached(states[:, 32:]).any(1).float().mean() > 0.95
    assert actions.abs().max() <= 1
    following = system.step(states[:, 20], actions[:, 20])
    torch.testing.assert_close(following, states[:, 21])
    assert torch.equal(demonstrations(system, 100, 48, 0)[0], states)
