"""Diffuser: its guidance samples the tilted density, and its return model sees through noise."""

from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.methods.diffuser import GuidedSampler, ReturnModel
from mpdiffuser.models.denoisers import hold
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)
LOW, HIGH = torch.full((D + M,), -1e6), torch.full((D + M,), 1e6)


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 100), ("ddim", 100), ("dpmpp_2m", 20)])
def test_diffusers_guidance_samples_the_tilted_gaussian(stub, noise_from, solver: str, steps: int) -> None:
    """p(x) exp(g c x) with p = N(0, v) is N(g v c, v); J_t = c E[x_0 | x_t] is its exact guide."""
    v, c, g, batch = 0.6, torch.linspace(-1, 1, D + M), 0.8, 4000

    def posterior_mean(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        alpha, sigma = SCHEDULE.coefficients(levels, 3)
        return alpha * v / (alpha**2 * v + sigma**2) * x

    planner = stub(lambda x, levels, condition, keep: posterior_mean(x, levels))
    config = SamplerConfig("planner", steps=steps, solver=solver, temperature=1.0, guidance=g)
    guide = stub(lambda x, levels: (posterior_mean(x, levels)[:, 1:] * c).sum((1, 2)))
    sampler = GuidedSampler(planner, None, SCHEDULE, LOW, HIGH, config, return_model=guide)
    x = sampler(torch.zeros(batch, D), torch.zeros(batch, 1), noise_from(0, batch))[:, 1:]
    torch.testing.assert_close(x.mean((0, 1)), g * v * c, atol=0.02, rtol=0)
    torch.testing.assert_close(x.var((0, 1)), torch.full((D + M,), v), atol=0.06, rtol=0)


def test_diffuser_guides_only_inside_the_interval(stub) -> None:
    planner = stub(lambda x, levels, condition, keep: 0 * x)
    config = SamplerConfig("planner", guidance=2.0, guidance_interval=(0.2, 0.8), temperature=1.0)
    guide = stub(lambda x, levels: x.sum((1, 2)))
    sampler = GuidedSampler(planner, None, SCHEDULE, LOW, HIGH, config, return_model=guide)
    x = torch.randn(2, H, D + M)
    for level in range(0, 100, 7):
        sigma, alpha = float(SCHEDULE.sigmas[level]), float(SCHEDULE.alphas[level])
        expected = 2.0 * sigma**2 / alpha if 0.2 <= sigma <= 0.8 else 0.0
        torch.testing.assert_close(sampler.planner_x0(x, level, torch.zeros(2, 1)), torch.full_like(x, expected))


def test_the_return_model_tells_a_linear_return_through_noise() -> None:
    torch.manual_seed(0)
    model = ReturnModel(**SIZES)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> dict[str, torch.Tensor]:
        latents, actions = torch.randn(size, H, D), torch.randn(size, H, M)
        return {"latents": latents, "actions": actions, "condition": latents[..., :1].mean(1) * H**0.5}

    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch(64), model.draw(64, SCHEDULE, generator), SCHEDULE)["loss"].backward()
        optimizer.step()
    fresh = batch(500)
    clean = torch.cat([fresh["latents"], fresh["actions"]], -1)
    levels = torch.full((500,), 40)
    noisy = hold(SCHEDULE.add_noise(clean, torch.randn(clean.shape), levels), fresh["latents"][:, 0])
    alpha = float(SCHEDULE.alphas[40])
    with torch.no_grad():
        error = (model(noisy, levels) - fresh["condition"][:, 0]).square().mean()
    # z_0 is given; of each other step the share sigma^2 of the variance is lost
    assert float(error) == pytest.approx((1 - alpha**2) * (H - 1) / H, abs=0.15)


def test_its_return_model_ranks(load_baseline, plan_of) -> None:
    diffuser = load_baseline("diffuser")
    plan = plan_of(diffuser)
    x = torch.cat([diffuser.latents.normalize(plan.latents), diffuser.actions.normalize(plan.actions)], -1)
    with torch.no_grad():
        scores = diffuser.other_models()["return_model"](x.flatten(0, 1), torch.zeros(8, dtype=torch.long))
    np.testing.assert_allclose(plan.scores.flatten(), scores, rtol=1e-3, atol=1e-4)
