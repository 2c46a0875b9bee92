"""Engines compute what torch computes."""

import pytest
import torch

from mpdiffuser.engines import compiled
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=16, multipliers=(1, 2), embedding=16)


def inputs(batch: int, kind: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, H, D + M, generator=generator)
    levels = torch.randint(100, (batch,), generator=generator)
    return (x, levels, x[:, 0, :2], (levels % 2).float()) if kind == "planner" else (x, levels)


@pytest.mark.parametrize("kind", ["planner", "dynamics"])
def test_openvino_agrees_with_torch(randomize, kind: str) -> None:
    """For every batch size, and what it gave before is not overwritten by the next call."""
    model = randomize(Planner(**SIZES, condition_dim=2) if kind == "planner" else Dynamics(**SIZES))
    fast, found, expected = compiled(model, "openvino"), [], []
    for batch in (1, 3, 64):
        with torch.inference_mode():
            found.append(fast(*inputs(batch, kind)))
            expected.append(model(*inputs(batch, kind)))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fast.config["horizon"] == H


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(InputError, match="engine: must be one of torch, openvino"):
        compiled(Dynamics(**SIZES), "tensorrt")
