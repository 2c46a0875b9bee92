"""D-MPC: states that follow from proposed actions without noise, and its critic."""

from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.methods.d_mpc import CleanDynamics, ProposalSampler
from mpdiffuser.models.denoisers import Dynamics
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)
LOW, HIGH = torch.full((D + M,), -1e6), torch.full((D + M,), 1e6)


@pytest.mark.parametrize("warm_start", [0, 3])
def test_d_mpc_draws_what_its_proposals_lead_to(system, stub, noise_from, warm_start: int) -> None:
    """With the exact denoiser of a deterministic system, which says where the actions it sees lead."""
    proposals = torch.randn(4, H, M, generator=torch.Generator().manual_seed(0))
    seen = []

    def lead(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        seen.append((int(levels[0]), x[..., D:].clone()))
        return system.rollout(x[:, 0, :D], x[..., D:])

    planner = stub(lambda x, levels, condition, keep: torch.cat([0 * x[..., :D], proposals], -1))
    config = SamplerConfig("sequential", steps=6, warm_start=warm_start, temperature=1.0)
    sampler = ProposalSampler(planner, stub(lead), SCHEDULE, LOW, HIGH, config)
    present = torch.randn(4, D)
    start = torch.randn(4, H, D + M) if warm_start else None
    x = sampler(present, torch.zeros(4, 1), noise_from(1, 4), start)
    torch.testing.assert_close(x[..., D:], proposals, atol=1e-4, rtol=0)
    torch.testing.assert_close(x[..., :D], system.rollout(present, x[..., D:]), atol=1e-4, rtol=0)
    assert [level for level, _ in seen] == SCHEDULE.grid(6)
    assert all(torch.equal(actions, x[..., D:]) for _, actions in seen)  # never noisy


@pytest.mark.parametrize("kind", [CleanDynamics, Dynamics])
def test_actions_in_the_training_of_the_dynamics(kind: type[Dynamics], monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind(**SIZES)
    batch = {"latents": torch.randn(5, H, D), "actions": torch.randn(5, H, M), "mask": torch.ones(5, H)}
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, levels, *rest: seen.append(x) or forward(x, levels, *rest))
    model.loss(batch, model.draw(5, SCHEDULE, torch.Generator().manual_seed(0)), SCHEDULE)
    assert torch.equal(seen[0][..., D:], batch["actions"]) == (kind is CleanDynamics)
    assert torch.equal(seen[0][:, 0, :D], batch["latents"][:, 0])


def test_its_critic_ranks(load_baseline, plan_of, whole_folder) -> None:
    plan = plan_of(load_baseline("d_mpc"))
    critic = Ranker.from_pretrained(whole_folder / "critic")
    assert critic.config["optimism"] == 0.5  # the mean return, as it was logged
    with torch.no_grad():
        np.testing.assert_allclose(plan.scores, critic.scores(plan.latents, plan.actions), rtol=1e-4, atol=1e-5)
