"""The U-Net: shapes, what it sees, horizons."""

import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.unet import TemporalUNet, check_horizon

D, M = 3, 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize(("horizon", "levels"), [(2, 1), (4, 2), (6, 2), (8, 3), (32, 3)])
def test_horizons_that_can_be(horizon: int, levels: int) -> None:
    check_horizon(horizon, (1,) * levels)
