"""Every claim of docs/theory.md; limits against an ODE solver."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from experiments import closed_form
from experiments.closed_form import alike, release_bias
from experiments.gaussian import Gaussian, Problem, problem
from mpdiffuser.schedule import NoiseSchedule

pytestmark = pytest.mark.slow  # make quick leaves evidence and drills out

ONE = problem()
D, M, N = ONE.system.sizes
STATES = ONE.system.states[D:].numpy()  # of the entries that are free: all but z_0


def assert_same(a: Gaussian, b: Gaussian, tolerance: float) -> None:
    distance = ONE.distance(a, b)
    assert distance.mean < tolerance and distance.covariance < tolerance, distance


# section 1: Gaussian, temperature


@pytest.mark.parametrize("composition", ["fused", "release", "planner", "sequential", "joint"])
def test_temperature_scales_the_covariance_and_leaves_the_mean(composition: str) -> None:
    config = dict(composition=composition, solver="ddpm", steps=10)
    hot, cold = ONE.drawn(**config), ONE.drawn(temperature=0.3, **config)
    torch.testing.assert_close(cold.mean, hot.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(cold.covariance, 0.09 * hot.covariance, rtol=0, atol=1e-12)


# section 2: one model


def test_one_model_is_drawn_exactly_with_many_levels() -> None:
    limit = ONE.drawn(levels=1000, composition="planner", solver="dpmpp_2m", steps=1000)
    assert_same(limit, ONE.planner, 0.002)
    assert_same(ONE.drawn(levels=1000, composition="planner", solver="ddim", steps=1000), ONE.planner, 0.005)


def test_few_levels_cost_first_order_solvers_their_spread() -> None:
    error = {
        (solver, steps): ONE.distance(
            ONE.drawn(composition="planner", solver=solver, steps=steps), ONE.planner
        ).covariance
        for solver in ("dpmpp_2m", "ddim", "ddpm")
        for steps in (10, 50)
    }
    assert error["dpmpp_2m", 10] == pytest.approx(0.06, abs=0.01)
    assert error["ddim", 10] == pytest.approx(0.47, abs=0.01)
    assert error["ddpm", 10] == pytest.approx(0.64, abs=0.01)
    assert error["dpmpp_2m", 10] < error["ddim", 50] < error["ddpm", 50]


def test_what_is_narrower_than_the_last_level_comes_out_narrower_still() -> None:
    schedule = NoiseSchedule(100)
    assert schedule.sigmas[0].item() == pytest.approx(0.025, abs=5e-4)
    for deviation in (0.25, 0.05, 0.025, 0.01):
        drawn = alike(deviation**2).drawn(composition="planner", solver="dpmpp_2m", steps=100)
        share = deviation / math.hypot(deviation, schedule.sigmas[0].item())
        assert drawn.covariance[2, 2].item() ** 0.5 / deviation == pytest.approx(share, abs=0.01)


# section 3: both models the same


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddim", "ddpm"])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_fused_does_not_double_count(solver: str, power: float) -> None:
    same = replace(ONE, dynamics=ONE.planner)
    expected = same.drawn(composition="planner", solver=solver, steps=10)
    for composition in ("fused", "joint"):
        found = same.drawn(composition=composition, solver=solver, steps=10, dynamics_power=power)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", [0.1, 0.5, 0.99])
def test_the_release_overshoots_and_narrows(variance: float) -> None:
    drawn = alike(variance).drawn(levels=1000, composition="release", solver="ddpm", steps=1000)
    mean, share = release_bias(variance)
    assert share == pytest.approx((2 + variance) / 6)
    assert drawn.mean[2].item() == pytest.approx(mean, rel=1e-4)  # the state z_1
    assert drawn.covariance[2, 2].item() / variance == pytest.approx(share, rel=0.03)
    assert drawn.mean[1].item() == pytest.approx(1, rel=1e-4)  # the action u_0 moves once a level
    assert drawn.covariance[1, 1].item() / variance == pytest.approx(1, rel=0.02)


def test_the_ends_of_the_bias() -> None:
    assert release_bias(1e-6) == pytest.approx((1, 1 / 3), rel=1e-4)
    assert release_bias(1 - 1e-6) == pytest.approx((4 / 3, 1 / 2), rel=1e-4)


# section 4: independent states, different models


@pytest.mark.parametrize(("planner", "dynamics"), [(0.5, 0.1), (0.9, 0.3), (0.3, 0.6)])
def test_the_spread_of_fused_states(planner: float, dynamics: float) -> None:
    different = replace(alike(planner**2), dynamics=alike(dynamics**2).dynamics)
    config = dict(levels=1000, solver="dpmpp_2m", steps=1000, dynamics_power=1.0)
    fused = different.drawn(composition="fused", **config).covariance[2, 2].item() ** 0.5
    expected = dynamics ** (1 / (1 - dynamics**2)) * planner ** (-(planner**2) / (1 - planner**2))
    assert fused == pytest.approx(expected, rel=0.01)
    assert fused > 1.15 * planner * dynamics / math.hypot(planner, dynamics)  # wider than the product
    assert dynamics > planner or fused < math.exp(0.5) * dynamics
    joint = different.drawn(composition="joint", **config).covariance[2, 2].item() ** 0.5
    assert joint == pytest.approx(dynamics, rel=0.01)


# section 5: what many levels converge to


def clean_estimate(density: Gaussian, a: float) -> tuple[np.ndarray, np.ndarray]:
    """E[x_0 | x_t] = gain x_t + offset of the free entries, by precisions."""
    precision = np.linalg.inv(density.covariance[D:, D:].numpy())
    gain = np.linalg.inv(precision + a / (1 - a) * np.eye(N - D))
    return gain * a**0.5 / (1 - a), gain @ precision @ density.mean[D:].numpy()


def flow_limit(power: float) -> Gaussian:
    """The probability flow dx / d varsigma = (x - D(alpha x)) / varsigma, varsigma = sigma / alpha, solved by scipy."""

    def slope(log_noise: float, flat: np.ndarray) -> np.ndarray:
        a = 1 / (1 + math.exp(2 * log_noise))
        (plan, plan_offset), (real, real_offset) = (clean_estimate(g, a) for g in (ONE.planner, ONE.dynamics))
        w = (a**power * STATES)[:, None]
        x = flat.reshape(N - D, -1)
        clean = a**0.5 * (w * real + (1 - w) * plan) @ x
        clean[:, 0] += w[:, 0] * real_offset + (1 - w[:, 0]) * plan_offset
        return (x - clean).ravel()

    begin = math.exp(8)
    start = np.concatenate([np.zeros((N - D, 1)), begin * np.eye(N - D)], 1)
    end = solve_ivp(slope, (8, -7), start.ravel(), rtol=1e-7, atol=1e-9).y[:, -1].reshape(N - D, -1)
    return free(end[:, 0], end[:, 1:] @ end[:, 1:].T)


def release_limit() -> Gaussian:
    """The moments of dx = (beta x / 2 + beta s_P) ds + the same for the states once more with s_D + sqrt(beta) dW."""
    last = 1 - 1e-6

    def slope(q: float, flat: np.ndarray) -> np.ndarray:
        mean, spread = flat[: N - D], flat[N - D :].reshape(N - D, N - D)
        drift, offset_sum = np.zeros((N - D, N - D)), np.zeros(N - D)
        for density, entries in ((ONE.planner, np.ones(N - D)), (ONE.dynamics, STATES)):
            gain, offset = clean_estimate(density, q)
            eye = np.eye(N - D)
            drift += entries[:, None] * (eye / 2 + (q**0.5 * gain - eye) / (1 - q))
            offset_sum += entries * q**0.5 * offset / (1 - q)
        d_spread = drift @ spread + spread @ drift.T + np.eye(N - D)
        return np.concatenate([drift @ mean + offset_sum, d_spread.ravel()]) / q

    start = np.concatenate([np.zeros(N - D), np.eye(N - D).ravel()])
    end = solve_ivp(slope, (1e-7, last), start, rtol=1e-6, atol=1e-9, method="LSODA").y[:, -1]
    return free(end[: N - D], end[N - D :].reshape(N - D, N - D))


def free(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    """The density of all entries from that of the free ones."""
    whole = torch.block_diag(torch.zeros(D, D, dtype=torch.float64), torch.from_numpy(covariance))
    return Gaussian(torch.cat([ONE.system.present, torch.from_numpy(mean)]), whole)


@pytest.mark.parametrize(("power", "mean", "violation"), [(0.0, 1.06, 2.5), (0.5, 0.53, 2.2), (2.0, 0.37, 2.4)])
def test_fused_and_joint_converge_to_their_flow_not_to_the_product(power: float, mean: float, violation: float) -> None:
    found = ONE.drawn(levels=1000, composition="fused", dynamics_power=power, solver="dpmpp_2m", steps=1000)
    assert_same(found, flow_limit(power), 0.02)
    distance = ONE.distance(found, ONE.product)
    assert distance.mean == pytest.approx(mean, abs=0.01)
    assert distance.violation == pytest.approx(violation, abs=0.1)


def test_the_release_converges_to_its_equation_not_to_the_product() -> None:
    found = ONE.drawn(levels=400, composition="release", solver="ddpm", steps=400)
    assert_same(found, release_limit(), 0.04)
    distance = ONE.distance(found, ONE.product)
    assert distance.mean == pytest.approx(0.28, abs=0.01)
    assert distance.violation == pytest.approx(2.0, abs=0.1)


def test_fused_is_near_the_actions_carried_out() -> None:
    config = dict(levels=1000, solver="dpmpp_2m", steps=1000)
    fused = ONE.drawn(composition="fused", dynamics_power=0.5, **config)
    assert ONE.distance(fused, ONE.feasible).mean == pytest.approx(0.05, abs=0.01)
    for composition, power, mean in (("planner", 0.5, 0.19), ("joint", 0.5, 0.36), ("fused", 2.0, 0.07)):
        other = ONE.drawn(composition=composition, dynamics_power=power, **config)
        assert ONE.distance(other, ONE.feasible).mean == pytest.approx(mean, abs=0.01)
    release = ONE.drawn(levels=400, composition="release", solver="ddpm", steps=400)
    assert ONE.distance(release, ONE.feasible).mean == pytest.approx(0.12, abs=0.01)


@pytest.mark.parametrize(
    ("composition", "planned", "executed"),
    [
        ("planner", 0.59, 0.30),
        ("fused", 0.27, 0.27),
        ("release", 0.48, 0.33),
        ("joint", -0.13, 0.13),
        ("sequential", -0.06, 0.30),
    ],
)
def test_the_last_position_as_planned_and_executed(composition: str, planned: float, executed: float) -> None:
    solver = "ddpm" if composition == "release" else "dpmpp_2m"
    drawn = ONE.drawn(composition=composition, solver=solver, steps=100, dynamics_power=0.5)
    assert ONE.end_positions(drawn) == pytest.approx((planned, executed), abs=0.01)
    assert ONE.end_positions(ONE.product) == pytest.approx((0.59, 0.59), abs=0.01)
    z, u = ONE.system.present, drawn.mean.view(ONE.system.horizon, D + M)[:, D:]
    for k in range(ONE.system.horizon - 1):
        z = ONE.system.A @ z + ONE.system.B @ u[k]
    assert ONE.end_positions(drawn)[1] == pytest.approx(z[0].item(), abs=1e-9)


@pytest.mark.parametrize(("composition", "gradient"), [("planner", True), ("fused", False), ("joint", False)])
def test_the_fused_field_is_no_gradient(composition: str, gradient: bool) -> None:
    """Whether the Jacobian of D is symmetric."""
    sampler = ONE.sampler(composition=composition)
    units = torch.cat([torch.zeros(1, N, dtype=torch.float64), torch.eye(N, dtype=torch.float64)])
    estimate = sampler._estimate(units.view(N + 1, -1, D + M), 40, units.new_zeros(N + 1, 1), None).flatten(1)
    jacobian = (estimate[1:] - estimate[0])[D:, D:]
    asymmetry = (jacobian - jacobian.T).abs().max().item()
    assert asymmetry < 1e-9 if gradient else asymmetry > 0.05


def test_where_the_fields_rest() -> None:
    def away(mean: torch.Tensor) -> float:
        return ONE.distance(Gaussian(mean, ONE.product.covariance), ONE.product).mean

    whole, joint = ONE.equilibrium((1, 1), (1, 1)), ONE.equilibrium((0, 1), (1, 0))
    release = ONE.equilibrium((1, 1), (1, 0))
    torch.testing.assert_close(whole, ONE.product.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(joint, ONE.dynamics.mean, rtol=0, atol=1e-9)  # no force, the goal forgotten
    assert away(joint) == pytest.approx(1.61, abs=0.01)
    assert away(release) == pytest.approx(0.33, abs=0.01)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_more_weight_on_the_planner_while_noise_is_high_keeps_the_goal(solver: str) -> None:
    powers = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    runs = [ONE.drawn(composition="fused", solver=solver, steps=50, dynamics_power=p) for p in powers]
    errors = [ONE.distance(run, ONE.product).mean for run in runs]
    assert errors == sorted(errors, reverse=True)
    planner = ONE.drawn(composition="planner", solver=solver, steps=50)
    assert all(ONE.distance(run, ONE.product).violation < 0.3 * violation(planner) for run in runs)


def violation(density: Gaussian) -> float:
    return ONE.distance(density, ONE.product).violation


# section 6: sequential


def test_sequential_with_noised_actions_is_not_the_rollout() -> None:
    found = ONE.drawn(levels=1000, composition="sequential", solver="dpmpp_2m", steps=1000)
    actions = ~ONE.system.states
    torch.testing.assert_close(found.mean[actions], ONE.feasible.mean[actions], rtol=0, atol=1e-4)
    distance = ONE.distance(found, ONE.feasible)
    assert distance.mean == pytest.approx(0.30, abs=0.02)
    assert distance.violation == pytest.approx(3.5, abs=0.1)


def test_with_clean_actions_it_would_be() -> None:
    """The exact denoiser of p(z | u) for one u, which a dynamics model trained with clean actions is."""
    u = ONE.planner.mean[~ONE.system.states]
    rollout = ONE.system.rollouts(Gaussian(u, torch.zeros(len(u), len(u), dtype=torch.float64)))
    given = Problem(ONE.system, rollout, rollout, rollout, rollout)
    found = given.drawn(levels=1000, composition="joint", solver="dpmpp_2m", steps=1000)
    assert_same(found, rollout, 0.01)
    assert violation(found) == pytest.approx(1, abs=0.1)


# section 7: in-painting


def test_in_painting_a_goal_is_not_conditioning_on_it() -> None:
    goal = torch.tensor([0.3, 0.1], dtype=torch.float64)
    rows = torch.eye(N, dtype=torch.float64)[-(D + M) : N - M]
    exact = ONE.planner.given(rows, goal, 1e-6)
    found = ONE.drawn(levels=1000, composition="planner", solver="dpmpp_2m", steps=1000, goal=goal)
    torch.testing.assert_close(found.mean[-(D + M) : N - M], goal)
    distance = ONE.distance(found, exact)
    assert distance.mean == pytest.approx(0.43, abs=0.01)
    assert distance.covariance == pytest.approx(0.49, abs=0.01)
    assert ONE.distance(ONE.planner, exact).mean == pytest.approx(0.67, abs=0.01)  # without a goal


# section 8: actions that hear the dynamics model
HEARS = replace(ONE, hears=True)


@pytest.mark.parametrize(
    ("composition", "power", "levels", "mean", "violation", "end"),
    [
        ("fused", 2.0, 10, 0.37, 2.3, 0.30),
        ("heard", 2.0, 10, 0.19, 0.6, 0.49),
        ("heard", 4.0, 6, 0.16, 0.9, 0.53),
        ("contrast", 4.0, 4, 0.24, 3.5, 0.74),
        ("contrast", 4.0, 6, 0.09, 1.0, 0.58),
        ("contrast", 4.0, 10, 0.08, 0.7, 0.56),
    ],
)
def test_hearing_brings_plans_nearer_to_the_product(
    composition: str, power: float, levels: int, mean: float, violation: float, end: float
) -> None:
    """Mean, violation, and where the actions take the cart; 2M, with exact models."""
    drawn = HEARS.drawn(composition=composition, solver="dpmpp_2m", steps=levels, dynamics_power=power)
    found = ONE.distance(drawn, ONE.product)
    assert found.mean == pytest.approx(mean, abs=0.01) and found.violation == pytest.approx(violation, abs=0.1)
    assert ONE.end_positions(drawn)[1] == pytest.approx(end, abs=0.01)


def test_what_is_heard_is_the_gradient_of_the_dynamics_density() -> None:
    """alpha (E[u | z_t, u_t] - E[u | u_t]) = sigma^2 grad_u log p_D(z_t | u_t), and the same for z; by autograd."""
    sampler = HEARS.sampler(composition="contrast")
    a, level = float(sampler.schedule.alpha_bar[40]), 40
    x = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:D] = ONE.system.present
    noisy = a * ONE.dynamics.covariance + (1 - a) * torch.eye(N, dtype=torch.float64)
    mean = a**0.5 * ONE.dynamics.mean
    states = [i for i in range(D, N) if ONE.system.states[i]]
    actions = [i for i in range(N) if not ONE.system.states[i]]

    def log_density(entries: list[int], y: torch.Tensor) -> torch.Tensor:
        normal = torch.distributions.MultivariateNormal(mean[entries], noisy[entries][:, entries])
        return normal.log_prob(y[entries])

    with torch.no_grad():
        _, term = sampler.heard(x.view(1, -1, D + M), level)
    for own in (actions, states):
        y = x.clone().requires_grad_()
        (log_density(states + actions, y) - log_density(own, y)).backward()
        torch.testing.assert_close(a**0.5 * term.flatten()[own], (1 - a) * y.grad[own], rtol=0, atol=1e-8)


# the command


def test_the_command_writes_its_measurements(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(closed_form, "LEVELS", (5, 3))
    monkeypatch.setattr(closed_form, "POWERS", (0.0, 0.5))
    monkeypatch.setattr(closed_form, "VARIANCES", (0.5,))
    closed_form.main(["--output", str(tmp_path)])
    text = (tmp_path / "closed_form.md").read_text()
    assert str(tmp_path / "closed_form.md") in capsys.readouterr().out
    wanted = ONE.distance(ONE.drawn(composition="release", solver="ddpm", steps=5), ONE.product)
    cell = f"{wanted.mean:.2f} / {wanted.covariance:.2f} / {wanted.violation:.1f}"
    assert f"| release, ddpm | {cell} |" in text
    assert f"| 0.5 | {release_bias(0.5)[0]:.3f} |" in text
    assert (tmp_path / "closed_form.png").stat().st_size > 10_000
