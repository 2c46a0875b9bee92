"""Decision Diffuser: plans of the states, and the actions that lead through them."""

from typing import Any

import numpy as np
import torch

from mpdiffuser.methods.decision_diffuser import InverseDynamics, StateSampler
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.windows import Windows

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)
LOW, HIGH = torch.full((D + M,), -1e6), torch.full((D + M,), 1e6)


def test_inverse_dynamics_of_a_linear_system(system) -> None:
    torch.manual_seed(0)
    inverse = InverseDynamics(D, M, hidden=64)
    optimizer = torch.optim.Adam(inverse.parameters(), 3e-3)

    def batch(size: int) -> dict[str, torch.Tensor]:
        actions = torch.randn(size, H, M)
        mask = torch.ones(size, H)
        mask[: size // 2, 5:] = 0  # the end of an episode: what follows is no transition
        latents = system.rollout(torch.randn(size, D), actions)
        latents[: size // 2, 5:] = latents[: size // 2, 4:5]
        return {"latents": latents, "actions": actions, "mask": mask}

    for _ in range(250):
        optimizer.zero_grad()
        inverse.loss(batch(64), {}, SCHEDULE)["loss"].backward()
        optimizer.step()
    fresh = batch(200)
    error = (inverse(fresh["latents"]) - fresh["actions"][:, :-1])[100:]
    assert error.square().mean() < 0.02  # of variance 1


def test_only_rows_of_one_distance_are_pairs(make_episodes) -> None:
    """With a stride the last row stands for rows beyond it, which are nearer."""
    episodes = make_episodes([12])
    identity = Normalizer(D).fit(episodes["observations"]), Normalizer(M).fit(episodes["actions"])
    targets = np.zeros((13, 1), np.float32)
    windows = Windows(episodes, targets, H, *identity, Marginals(1).fit(targets), stride=5)
    batch = windows.batch(torch.tensor([1]))  # rows 1, 6, 11, then 12 again and again
    assert batch["action_mask"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    inverse = InverseDynamics(D, M, hidden=8)
    with torch.no_grad():
        errors = (inverse(batch["latents"]) - batch["actions"][:, :-1])[0, :2]
    loss = inverse.loss(batch, {}, SCHEDULE)["loss"].detach()
    torch.testing.assert_close(loss, errors.square().mean())


def test_state_plans_get_the_actions_that_lead_through_them(system, stub, noise_from) -> None:
    wanted = torch.randn(4, H, M, generator=torch.Generator().manual_seed(0))
    states = system.rollout(torch.randn(4, D), wanted)
    planner = stub(lambda x, levels, condition, keep: torch.cat([states, 0 * x[..., D:]], -1))
    exact = stub(lambda z: (z[:, 1:] - z[:, :-1] @ system.A.T) @ torch.linalg.pinv(system.B).T)
    config = SamplerConfig("planner", temperature=0.5)
    sampler = StateSampler(planner, None, SCHEDULE, LOW, HIGH, config, inverse=exact)
    x = sampler(states[:, 0], torch.zeros(4, 1), noise_from(1, 4))
    torch.testing.assert_close(x[..., :D], states, atol=1e-4, rtol=0)
    torch.testing.assert_close(system.rollout(states[:, 0], x[..., D:]), states, atol=1e-3, rtol=0)


def test_it_asks_for_a_share_of_the_range_of_returns(load_baseline, plan_of) -> None:
    baseline = load_baseline("decision_diffuser")
    plans = [plan_of(baseline, target=target) for target in (0.1, 0.9)]
    assert not torch.equal(plans[0].latents, plans[1].latents)
    target = baseline.condition.denormalize(baseline.target(torch.zeros(3, D), 0.9))
    torch.testing.assert_close(target, torch.full((3, 1), 9.0), atol=0.01, rtol=0)  # of returns 0..10
