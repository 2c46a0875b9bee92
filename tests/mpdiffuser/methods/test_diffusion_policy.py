"""Planners of a part of the trajectory, and the diffusion policy."""

from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.methods.decision_diffuser import StatePlanner
from mpdiffuser.methods.diffusion_policy import ActionPlanner
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.schedule import NoiseSchedule

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)
LOW, HIGH = torch.full((D + M,), -1e6), torch.full((D + M,), 1e6)


@pytest.mark.parametrize(("kind", "drawn"), [(StatePlanner, slice(0, D)), (ActionPlanner, slice(D, D + M))])
def test_a_planner_of_a_part_neither_sees_nor_learns_the_rest(randomize, kind: type[Planner], drawn: slice) -> None:
    model = randomize(kind(**SIZES))
    x, other = torch.randn(2, 4, H, D + M)
    other[..., drawn] = x[..., drawn]
    other[:, 0, :D] = x[:, 0, :D]  # the present is known to all
    inputs = (torch.tensor([0, 30, 60, 99]), torch.randn(4, 1), torch.ones(4))
    output = model(x, *inputs)
    assert torch.equal(output, model(other, *inputs))
    rest = torch.ones(D + M, dtype=torch.bool)
    rest[drawn] = False
    assert (output[..., rest] == 0).all() and (output[..., drawn] != 0).all()

    def loss(x: torch.Tensor) -> torch.Tensor:
        masks = {"mask": torch.ones(4, H), "action_mask": torch.ones(4, H)}
        batch = {"latents": x[..., :D], "actions": x[..., D:], "condition": torch.zeros(4, 1), **masks}
        return model.loss(batch, model.draw(4, SCHEDULE, torch.Generator().manual_seed(0)), SCHEDULE)["loss"]

    torch.testing.assert_close(loss(x), loss(other))
    assert abs(loss(x) - loss(x + 1)) > 1e-3


def test_its_plans_hold_no_states(load_baseline, plan_of) -> None:
    """The present stands for all of them, so evaluation does not compare them with the simulator."""
    baseline = load_baseline("diffusion_policy")
    plan = plan_of(baseline)
    np.testing.assert_array_equal(plan.latents, np.broadcast_to(plan.latents[:, :, :1], plan.latents.shape))
    assert not baseline.plans_states and baseline.settings["chunk"] == 8
    assert (plan.scores == 0).all()  # nothing ranks them
