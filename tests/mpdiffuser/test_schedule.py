"""The noise schedule against diffusers, finite differences and its own definition."""

import itertools
import math

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser.errors import InputError
from mpdiffuser.schedule import GRIDS, PREDICTIONS, SOLVERS, NoiseSchedule, moves


@pytest.mark.parametrize("levels", [10, 100, 1000])
def test_cosine_alpha_bars_are_those_of_diffusers(levels: int) -> None:
    theirs = DDPMScheduler(levels, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(NoiseSchedule(levels).alpha_bar.float(), theirs, rtol=2e-4, atol=0)


@pytest.mark.parametrize("levels", [100, 1000])
def test_linear_alpha_bars_are_those_of_diffusers(levels: int) -> None:
    scale = 1000 / levels
    theirs = DDPMScheduler(levels, beta_start=1e-4 * scale, beta_end=0.02 * scale).alphas_cumprod
    torch.testing.assert_close(NoiseSchedule(levels, "linear").alpha_bar.float(), theirs, rtol=2e-4, atol=0)


def test_alpha_and_sigma_lie_on_the_unit_circle() -> None:
    schedule = NoiseSchedule(100)
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(100))
    assert (schedule.alphas.diff() < 0).all()


def test_add_noise_by_hand() -> None:
    schedule = NoiseSchedule(50)
    clean, noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0, 20, 49])
    noisy = schedule.add_noise(clean, noise, levels)
    for b, level in enumerate(levels.tolist()):
        kept = schedule.alpha_bar[level].item()
        expected = math.sqrt(kept) * clean[b] + math.sqrt(1 - kept) * noise[b]
        torch.testing.assert_close(noisy[b], expected, rtol=1e-5, atol=1e-6)


def test_v_is_the_derivative_along_the_circle() -> None:
    schedule = NoiseSchedule(100)
    clean, noise = torch.randn(2, 100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = torch.arange(100)
    angle = torch.acos(schedule.alpha_bar.sqrt())[:, None]
    point = lambda a: torch.cos(a) * clean + torch.sin(a) * noise  # noqa: E731
    slope = (point(angle + 1e-5) - point(angle - 1e-5)) / 2e-5
    torch.testing.assert_close(
        schedule.training_target("v_prediction", clean, noise, levels), slope, rtol=1e-5, atol=1e-5
    )


@given(
    st.sampled_from(PREDICTIONS),
    st.sampled_from(["cosine", "linear"]),
    st.integers(1, 200),
    st.integers(0, 2**31),
    st.data(),
)
def test_to_clean_undoes_the_training_target(prediction: str, betas: str, total: int, seed: int, data) -> None:
    schedule = NoiseSchedule(total, betas)
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (3 * torch.randn(4, 2, 3, generator=generator) for _ in range(2))
    levels = torch.tensor(data.draw(st.lists(st.integers(0, total - 1), min_size=4, max_size=4)))
    noisy = schedule.add_noise(clean, noise, levels)
    target = schedule.training_target(prediction, clean, noise, levels)
    found = schedule.to_clean(prediction, target, noisy, levels)
    rounding = 1e-5 / schedule.alphas[levels].min().item() if prediction == "epsilon" else 1e-5
    torch.testing.assert_close(found, clean, rtol=0, atol=rounding)


@given(st.integers(1, 200), st.sampled_from(GRIDS), st.sampled_from(["cosine", "linear"]), st.data())
def test_a_grid_has_the_steps_asked_for(total: int, kind: str, betas: str, data) -> None:
    steps = data.draw(st.integers(1, total))
    grid = NoiseSchedule(total, betas).grid(steps, kind)
    assert len(grid) == steps
    assert grid[0] == total - 1
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert grid[-1] >= 0
    if steps > 1:
        assert grid[-1] == 0
    assert all(isinstance(level, int) for level in grid)


def test_all_levels_at_the_full_number_of_steps() -> None:
    for kind in GRIDS:
        assert NoiseSchedule(20).grid(20, kind) == list(range(19, -1, -1))


def test_spacings() -> None:
    schedule = NoiseSchedule(1000)
    assert schedule.grid(10, "uniform") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert schedule.grid(4, "quadratic") == [999, 444, 111, 0]
    logsnr = [0.5 * math.log(a / (1 - a)) for a in schedule.alpha_bar.tolist()]
    for k, level in enumerate(schedule.grid(8, "logsnr")):
        wanted = logsnr[999] + k / 7 * (logsnr[0] - logsnr[999])
        assert level == min(range(1000), key=lambda i: abs(logsnr[i] - wanted))


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_karras_spacing_is_that_of_diffusers(steps: int) -> None:
    """The nearest of 1000 levels to the sigmas of equation 5, which diffusers leaves between the levels."""
    schedule = NoiseSchedule(1000, "linear")
    theirs = EulerDiscreteScheduler(1000, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True)
    theirs.set_timesteps(steps)
    sigmas = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()
    for level, sigma in zip(schedule.grid(steps, "karras"), theirs.sigmas[:-1].tolist()):
        gaps = (sigmas ** (1 / 7) - sigma ** (1 / 7)).abs()
        assert gaps[level] <= gaps.min() + 1e-5


@given(st.integers(1, 200), st.sampled_from(GRIDS), st.sampled_from(SOLVERS), st.floats(0, 1), st.data())
def test_moves_keep_the_noise_of_each_level(total: int, kind: str, solver: str, eta: float, data) -> None:
    """A right D keeps the signal at alpha and the noise at sigma from every level to the next, onto clean data."""
    schedule = NoiseSchedule(total)
    levels = schedule.grid(data.draw(st.integers(1, total)), kind)
    chain = moves(schedule, levels, solver, eta)
    assert [move.level for move in chain] == levels
    ends = [*((schedule.alphas[i].item(), schedule.sigmas[i].item()) for i in levels), (1.0, 0.0)]
    for move, (alpha, sigma), (alpha_next, sigma_next) in zip(chain, ends, ends[1:]):
        assert move.x_coef * alpha + move.x0_coef == pytest.approx(alpha_next, abs=1e-6)
        assert math.hypot(move.x_coef * sigma, move.noise_std) == pytest.approx(sigma_next, abs=1e-6)
    assert chain[-1].extrapolation == 0
    if solver == "ddim":
        full = moves(schedule, levels, "ddpm")
        assert [move.noise_std for move in chain] == pytest.approx([eta * move.noise_std for move in full], abs=1e-9)
    if eta == 1 and solver == "ddim":
        assert chain == full


@pytest.mark.parametrize("steps", [0, -1, 21])
def test_impossible_steps(steps: int) -> None:
    with pytest.raises(InputError, match=rf"sampler\.steps.*1\.\.20.*found {steps}"):
        NoiseSchedule(20).grid(steps)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"sampler\.grid.*uniform.*karras.*'cubic'"):
        NoiseSchedule(20).grid(3, "cubic")
    with pytest.raises(InputError, match=r"schedule\.betas.*'sigmoid'"):
        NoiseSchedule(20, "sigmoid")
    with pytest.raises(InputError, match=r"schedule\.num_levels.*found 0"):
        NoiseSchedule(0)


def test_saving_and_loading(tmp_path) -> None:
    NoiseSchedule(37, "linear").save_pretrained(tmp_path)
    loaded = NoiseSchedule.from_pretrained(tmp_path)
    assert torch.equal(loaded.alpha_bar, NoiseSchedule(37, "linear").alpha_bar)
