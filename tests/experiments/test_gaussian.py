"""The exact problem against simulation, block algebra and plain sampling."""

import pytest
import torch

from experiments.gaussian import Gaussian, problem
from mpdiffuser.schedule import NoiseSchedule

ONE = problem()
D, M, N = ONE.system.sizes


def assert_same(a: Gaussian, b: Gaussian, tolerance: float) -> None:
    distance = ONE.distance(a, b)
    assert distance.mean < tolerance and distance.covariance < tolerance, distance


def test_rollouts_are_what_the_system_does() -> None:
    generator = torch.Generator().manual_seed(0)
    system, count = ONE.system, 100_000
    z, rows = system.present.expand(count, -1), []
    for _ in range(system.horizon):
        u = torch.randn(count, M, generator=generator, dtype=torch.float64)
        rows.append(torch.cat([z, u], 1))
        z = z @ system.A.T + u @ system.B.T + system.noise * torch.randn(count, D, generator=generator)
    x = torch.stack(rows, 1).flatten(1)
    assert_same(Gaussian(x.mean(0), x.T.cov()), ONE.dynamics, 0.02)


def test_the_product_adds_precisions() -> None:
    residuals = ONE.system.residuals() / ONE.system.noise
    planner = torch.linalg.inv(ONE.planner.covariance[D:, D:])
    precision = planner + residuals[:, D:].T @ residuals[:, D:]
    offset = planner @ ONE.planner.mean[D:] - residuals[:, D:].T @ residuals[:, :D] @ ONE.system.present
    torch.testing.assert_close(ONE.product.covariance[D:, D:], torch.linalg.inv(precision), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ONE.product.mean[D:], torch.linalg.solve(precision, offset), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ONE.product.mean[:D], ONE.system.present)


@pytest.mark.parametrize("level", [0, 30, 70, 99])
def test_the_denoiser_is_the_conditional_mean(level: int) -> None:
    """By conditioning the joint density of (x_0, x_t)."""
    schedule = NoiseSchedule(100)
    a = float(schedule.alpha_bar[level])
    joint = Gaussian(
        torch.cat([ONE.planner.mean, torch.zeros(N, dtype=torch.float64)]),
        torch.block_diag(ONE.planner.covariance, torch.eye(N, dtype=torch.float64)),
    )
    eye = torch.eye(N, dtype=torch.float64)
    observe = torch.cat([a**0.5 * eye, (1 - a) ** 0.5 * eye], 1)
    x = torch.randn(3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(level))
    expected = torch.stack([joint.given(observe, row, 0.0).mean[:N] for row in x])
    torch.testing.assert_close(ONE.planner.denoiser(schedule)(x, level), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("composition", "solver"), [("fused", "dpmpp_2m"), ("release", "ddpm"), ("sequential", "ddpm")]
)
def test_what_is_drawn_is_drawn(composition: str, solver: str) -> None:
    """The affine map against plain sampling."""
    config = dict(composition=composition, solver=solver, steps=10)
    generator, count = torch.Generator().manual_seed(0), 40_000
    shape = (count, ONE.system.horizon, D + M)
    x = ONE.sampler(temperature=1.0, **config)(
        ONE.system.present.expand(count, -1),
        torch.zeros(count, 1, dtype=torch.float64),
        lambda: torch.randn(shape, dtype=torch.float64, generator=generator),
    ).flatten(1)
    assert_same(Gaussian(x.mean(0), x.T.cov()), ONE.drawn(**config), 0.03)
