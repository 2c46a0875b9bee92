"""The sampler against diffusers' schedulers, closed forms and plain loops."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given as given_hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Denoiser, Dynamics, Planner
from mpdiffuser.sampler import COMPOSITIONS, HEARING, Sampler, SamplerConfig
from mpdiffuser.schedule import GRIDS, PREDICTIONS, SOLVERS, NoiseSchedule, moves

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)


def limits(value: float = 1e9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((D + M,), -value), torch.full((D + M,), value)


PLAIN = [name for name in COMPOSITIONS if name not in HEARING]


def noise_from(seed: int, batch: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(batch, H, D + M, generator=generator)


def given(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Present latents and conditions, different in every row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D, generator=generator), torch.randn(batch, 1, generator=generator)


@pytest.fixture
def planner(randomize) -> Planner:
    return randomize(Planner(**SIZES, bounded=False), seed=1)


@pytest.fixture
def dynamics(randomize) -> Dynamics:
    return randomize(Dynamics(**SIZES), seed=2)


def make(
    planner: Any, dynamics: Any, schedule: NoiseSchedule = SCHEDULE, bound: float = 1e9, **settings: Any
) -> Sampler:
    settings = {"steps": 8, "temperature": 0.5, "dynamics_power": 1.0, **settings}
    return Sampler(planner, dynamics, schedule, *limits(bound), SamplerConfig(**settings))


def reference(scheduler: Any, planner: Planner, present: torch.Tensor, condition: torch.Tensor, seed: int):
    """Diffusers' sampling loop with the present held."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(present), H, D + M, generator=generator)
    takes_generator = {} if isinstance(scheduler, DPMSolverMultistepScheduler) else {"generator": generator}
    for t in scheduler.timesteps:
        x[:, 0, :D] = present
        levels = torch.full((len(x),), int(t))
        with torch.no_grad():
            output = planner(x, levels, condition, torch.ones(len(x)))
        x = scheduler.step(output, t, x, **takes_generator).prev_sample
    x[:, 0, :D] = present
    return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [5, 20])
def test_agrees_with_diffusers(randomize, solver: str, prediction: str, steps: int) -> None:
    schedule = NoiseSchedule(100, "linear")  # alpha stays above 0.006, so that epsilon can be compared too
    planner = randomize(Planner(**SIZES, prediction=prediction, bounded=False), seed=3)
    options: dict[str, Any] = dict(beta_start=1e-3, beta_end=0.2, prediction_type=prediction)
    scheduler: Any
    if solver == "dpmpp_2m":
        levels = schedule.grid(steps)
        scheduler = DPMSolverMultistepScheduler(100, **options)
        scheduler.set_timesteps(timesteps=levels)
    else:
        kind = DDIMScheduler if solver == "ddim" else DDPMScheduler
        scheduler = kind(100, clip_sample=False, timestep_spacing="trailing", **options)
        scheduler.set_timesteps(steps)
        levels = scheduler.timesteps.tolist()
    present, condition = given(4)
    expected = reference(scheduler, planner, present, condition, seed=7)
    sampler = make(planner, None, schedule, composition="planner", solver=solver, temperature=1.0, steps=steps)
    sampler.moves = moves(schedule, levels, solver)
    found = sampler(present, condition, noise_from(7, 4))
    scale = expected.abs().max().item()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_with_eta_agrees_with_diffusers(planner: Planner, eta: float) -> None:
    schedule = NoiseSchedule(100, "linear")
    scheduler = DDIMScheduler(
        100,
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        beta_start=1e-3,
        beta_end=0.2,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(10)
    step = scheduler.step
    scheduler.step = lambda *inputs, **named: step(*inputs, eta=eta, **named)
    present, condition = given(4)
    expected = reference(scheduler, planner, present, condition, seed=7)
    settings: dict[str, Any] = dict(composition="planner", solver="ddim", eta=eta, temperature=1.0, steps=10)
    sampler = make(planner, None, schedule, **settings)
    sampler.moves = moves(schedule, scheduler.timesteps.tolist(), "ddim", eta)
    torch.testing.assert_close(sampler(present, condition, noise_from(7, 4)), expected, rtol=1e-4, atol=1e-4)
    same_as_ddpm = make(planner, None, schedule, **{**settings, "solver": "ddpm", "eta": 0.0})
    same_as_ddpm.moves = sampler.moves = moves(schedule, scheduler.timesteps.tolist(), "ddim", 1.0)
    assert torch.equal(*(s(present, condition, noise_from(7, 4)) for s in (sampler, same_as_ddpm)))


class GaussianPlanner(Denoiser, nn.Module):
    """The exact denoiser of data whose entries are independent normals with this mean and deviation."""

    def __init__(self, mean: float, std: float, schedule: NoiseSchedule = SCHEDULE) -> None:
        super().__init__()
        self.config = {"prediction": "sample"}
        self.mean, self.std, self.schedule = mean, std, schedule

    def forward(self, x: torch.Tensor, levels: torch.Tensor, condition: torch.Tensor, keep: torch.Tensor):
        kept = self.schedule.alpha_bar[levels[0]].item()
        gain = kept**0.5 * self.std**2 / (kept * self.std**2 + 1 - kept)
        return self.mean + gain * (x - kept**0.5 * self.mean)


@pytest.mark.parametrize(
    ("solver", "levels", "steps"), [("ddim", 100, 100), ("ddpm", 1000, 400), ("dpmpp_2m", 100, 20)]
)
def test_samples_a_known_gaussian(solver: str, levels: int, steps: int) -> None:
    batch, schedule = 2000, NoiseSchedule(levels)
    exact = GaussianPlanner(0.7, 0.4, schedule)
    sampler = make(exact, None, schedule, composition="planner", solver=solver, steps=steps, temperature=1.0)
    x = sampler(torch.zeros(batch, D), torch.zeros(batch, 1), noise_from(0, batch))[:, 1:]
    assert x.mean().item() == pytest.approx(0.7, abs=0.01)
    assert x.std().item() == pytest.approx(0.4, rel=0.03)  # DDPM's posterior variance is a lower bound


def test_temperature_narrows_the_samples() -> None:
    batch = 1000
    widths = []
    for temperature in (0.0, 0.5, 1.0):
        sampler = make(
            GaussianPlanner(0.7, 0.4), None, composition="planner", solver="ddim", steps=50, temperature=temperature
        )
        x = sampler(torch.zeros(batch, D), torch.zeros(batch, 1), noise_from(0, batch))[:, 1:]
        widths.append(x.std(0).mean().item())  # DDIM with this denoiser is affine in the noise
    assert widths[0] < 1e-5
    assert widths[1] == pytest.approx(widths[2] / 2, rel=1e-3)


def watch(model: nn.Module) -> list[SimpleNamespace]:
    """The inputs and output of every call from now on."""
    calls: list[SimpleNamespace] = []
    model.register_forward_hook(
        lambda module, inputs, output: calls.append(
            SimpleNamespace(x=inputs[0].clone(), levels=inputs[1].clone(), rest=inputs[2:], output=output.clone())
        )
    )
    return calls


def clean_estimate(model: Any, output: torch.Tensor, x: torch.Tensor, level: int, channels: int = D + M):
    kept = SCHEDULE.alpha_bar[level].item()
    assert model.config["prediction"] == "v_prediction"
    return kept**0.5 * x[..., :channels] - (1 - kept) ** 0.5 * output


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance(planner: Planner, batch: int, scale: float) -> None:
    present, condition = given(batch)
    calls = watch(planner)
    # a single level lands on the estimate itself
    found = make(planner, None, composition="planner", steps=1, guidance=scale)(
        present, condition, noise_from(3, batch)
    )
    assert [len(call.x) for call in calls] == [batch if scale in (0, 1) else 2 * batch]
    x = 0.5 * noise_from(3, batch)()
    x[:, 0, :D] = present
    levels = torch.full((batch,), 99)
    with torch.no_grad():
        conditional = clean_estimate(planner, planner(x, levels, condition, torch.ones(batch)), x, 99)
        free = clean_estimate(planner, planner(x, levels, condition, torch.zeros(batch)), x, 99)
    expected = free + scale * (conditional - free)
    expected[:, 0, :D] = present
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (conditional - free).abs().max() > 0.005


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.9), (0.9, 1.0), (0.0, 0.2), (0.0, 0.0)])
def test_guided_only_inside_the_interval(planner: Planner, interval: tuple[float, float]) -> None:
    present, condition = given(3)
    calls = watch(planner)
    settings: dict[str, Any] = dict(composition="planner", solver="ddim", bound=2.0, steps=10, grid="uniform")
    found = make(planner, None, guidance=2.0, guidance_interval=interval, **settings)(
        present, condition, noise_from(1, 3)
    )
    sigmas = [(1 - SCHEDULE.alpha_bar[level].item()) ** 0.5 for level in SCHEDULE.grid(10, "uniform")]
    assert [len(call.x) for call in calls] == [6 if interval[0] <= sigma <= interval[1] else 3 for sigma in sigmas]
    plain = make(planner, None, guidance=1.0, **settings)(present, condition, noise_from(1, 3))
    assert torch.equal(found, plain) == (interval == (0.0, 0.0))


@pytest.mark.parametrize("composition", PLAIN)
@pytest.mark.parametrize("warm_start", [0, 3])
def test_the_present_is_held(planner: Planner, dynamics: Dynamics, composition: str, warm_start: int) -> None:
    present, condition = given(4)
    seen = watch(planner), watch(dynamics)
    sampler = make(planner, dynamics, composition=composition, solver="ddpm", steps=6, warm_start=warm_start)
    start = torch.randn(4, H, D + M) if warm_start else None
    x = sampler(present, condition, noise_from(0, 4), start)
    assert torch.equal(x[:, 0, :D], present)
    levels = SCHEDULE.grid(6)[-warm_start:]
    for calls in seen:
        if composition == "planner" and calls is seen[1]:
            assert not calls
            continue
        assert [int(call.levels[0]) for call in calls] == levels
        assert all(torch.equal(call.x[:, 0, :D], present) for call in calls)


@pytest.mark.parametrize("composition", PLAIN)
def test_what_is_known_is_held(planner: Planner, dynamics: Dynamics, composition: str) -> None:
    present, condition = given(4)
    goal, committed = given(4, seed=1)[0], torch.rand(4, 2, M)
    seen = watch(planner), watch(dynamics)
    sampler = make(planner, dynamics, composition=composition, solver="ddpm", steps=6)
    free = sampler(present, condition, noise_from(0, 4))
    for calls in seen:
        calls.clear()
    x = sampler(present, condition, noise_from(0, 4), goal=goal, committed=committed)
    for y in (x, *(call.x for calls in seen for call in calls)):
        assert torch.equal(y[:, 0, :D], present)
        assert torch.equal(y[:, -1, :D], goal)
        assert torch.equal(y[:, :2, D:], committed)
    assert (x[:, 1:-1] - free[:, 1:-1]).abs().max() > 1e-3


@pytest.mark.parametrize("composition", HEARING)
def test_actions_that_hear_the_dynamics_model(randomize, planner: Planner, composition: str) -> None:
    """One level by hand: three estimates of the dynamics model, and what they add; fixed parts stay, D in the range."""
    dynamics = randomize(Dynamics(**SIZES, hears=True), seed=2)
    present, condition = given(3)
    sampler = make(planner, dynamics, bound=1.5, composition=composition, steps=1, temperature=1.0)
    level = sampler.moves[0].level
    found = sampler(present, condition, noise_from(0, 3))
    x = noise_from(0, 3)()
    x[:, 0, :D] = present
    levels = torch.full((3,), level)

    def estimate(states: int, actions: int) -> torch.Tensor:
        shown = x.clone()
        shown[:, 1:, :D] *= states
        shown[..., D:] *= actions
        with torch.no_grad():
            output = dynamics(shown, levels, torch.tensor([[states, actions]] * 3).float())
        return dynamics.to_clean(output, shown, levels, SCHEDULE).clamp(-1.5, 1.5)

    whole, by_actions, by_states = estimate(1, 1), estimate(0, 1), estimate(1, 0)
    with torch.no_grad():
        plan = sampler.planner_x0(x, level, condition)
    plan[..., D:] += (whole - by_actions)[..., D:]
    if composition == "contrast":
        plan[..., :D] += (whole - by_states)[..., :D]
    plan = plan.clamp(-1.5, 1.5)
    w = float(SCHEDULE.alpha_bar[level])
    plan[..., :D] = w * whole[..., :D] + (1 - w) * plan[..., :D]
    plan[:, 0, :D] = present
    torch.testing.assert_close(found, plan, rtol=0, atol=1e-5)


def test_a_dynamics_model_that_cannot_be_heard(planner: Planner, dynamics: Dynamics) -> None:
    with pytest.raises(InputError, match=r"'heard' needs a dynamics model that estimates actions too; .*hears=true"):
        make(planner, dynamics, composition="heard")


@pytest.mark.parametrize("composition", ["fused", "joint", "sequential"])
def test_a_dynamics_model_that_hears_serves_the_others(randomize, planner: Planner, composition: str) -> None:
    present, condition = given(3)
    dynamics = randomize(Dynamics(**SIZES, hears=True), seed=2)
    plans = make(planner, dynamics, composition=composition, steps=3)(present, condition, noise_from(0, 3))
    assert plans.shape == (3, H, D + M) and plans.isfinite().all()


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_joint_is_fused_with_all_weight_on_the_dynamics(planner: Planner, dynamics: Dynamics, solver: str) -> None:
    present, condition = given(3)
    results = [
        make(planner, dynamics, bound=2.0, solver=solver, **settings)(present, condition, noise_from(0, 3))
        for settings in ({"composition": "joint"}, {"dynamics_power": 0.0}, {"dynamics_power": 1.0})
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("warm", [False, True])
def test_sequential_is_a_plan_and_then_its_states(planner: Planner, dynamics: Dynamics, warm: bool) -> None:
    """The second pass as a plain DDIM loop: states by the dynamics model, actions noised to the level of the states."""
    present, condition = given(2)
    bound, temperature = 1.5, 0.7
    start = torch.randn(2, H, D + M, generator=torch.Generator().manual_seed(8)) if warm else None
    settings: dict[str, Any] = dict(
        bound=bound, solver="ddim", steps=5, grid="uniform", temperature=temperature, warm_start=3 if warm else 0
    )
    noise = noise_from(0, 2)
    plan = make(planner, None, composition="planner", **settings)(present, condition, noise, start)
    eps = temperature * noise()
    x = states = torch.empty(0)
    grid = [99, 74, 50, 25, 0][-3 if warm else 0 :]
    for level, following in zip(grid, [*grid[1:], None]):
        kept = SCHEDULE.alpha_bar[level].item()
        if level == grid[0]:
            states = kept**0.5 * plan[..., :D] + (1 - kept) ** 0.5 * eps[..., :D]
        actions = kept**0.5 * plan[..., D:] + (1 - kept) ** 0.5 * eps[..., D:]
        states[:, 0] = present
        x = torch.cat([states, actions], -1)
        with torch.no_grad():
            real = clean_estimate(dynamics, dynamics(x, torch.full((2,), level)), x, level, D).clamp(-bound, bound)
        then = 1.0 if following is None else SCHEDULE.alpha_bar[following].item()
        noise_in_it = (states - kept**0.5 * real) / (1 - kept) ** 0.5
        states = then**0.5 * real + (1 - then) ** 0.5 * noise_in_it
    states[:, 0] = present
    expected = torch.cat([states, plan[..., D:]], -1)
    found = make(planner, dynamics, composition="sequential", **settings)(present, condition, noise_from(0, 2), start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (states - plan[..., :D]).abs().max() > 0.01


@pytest.mark.slow
@settings(max_examples=25)
@given_hypothesis(
    st.sampled_from(PLAIN),
    st.sampled_from(SOLVERS),
    st.sampled_from(GRIDS),
    st.integers(1, 4),
    st.integers(1, 30),
    st.floats(0, 1),
    st.data(),
)
def test_any_call_gives_finite_plans_that_rows_do_not_share(
    randomize, composition: str, solver: str, grid: str, batch: int, total: int, eta: float, data
) -> None:
    steps = data.draw(st.integers(1, total))
    config = dict(
        composition=composition,
        solver="ddpm" if composition == "release" else solver,
        eta=eta if solver == "ddim" and composition != "release" else 0.0,
        grid=grid,
        steps=steps,
        warm_start=data.draw(st.integers(0, steps)),
        guidance=data.draw(st.sampled_from([1.0, 2.0])),
        guidance_interval=sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))),
    )
    models = (randomize(Planner(**SIZES), seed=1), randomize(Dynamics(**SIZES), seed=2))
    sampler = make(*models, NoiseSchedule(total), bound=2.0, **config)
    present, condition = given(batch)
    present = present.clamp(-2, 2)
    start = torch.rand(batch, H, D + M) if config["warm_start"] else None
    draws = [torch.randn(batch, H, D + M, generator=torch.Generator().manual_seed(i)) for i in range(2 * total + 2)]

    def plans(rows: slice) -> torch.Tensor:
        todo = iter(draws)
        return sampler(present[rows], condition[rows], lambda: next(todo)[rows], None if start is None else start[rows])

    together = plans(slice(None))
    assert together.abs().max() <= 2 and torch.isfinite(together).all()
    assert torch.equal(together[:, 0, :D], present)
    torch.testing.assert_close(plans(slice(batch - 1, batch)), together[-1:], rtol=0, atol=1e-4)


def test_dynamics_power_zero_leaves_the_states_to_the_dynamics(randomize, planner: Planner, dynamics: Dynamics) -> None:
    present, condition = given(4)
    other = randomize(Planner(**SIZES, bounded=False), seed=1)
    with torch.no_grad():
        other.unet.leave[-1].weight[:D] += 1.0  # another opinion of the states, the same of the actions
    results = {
        power: [
            make(model, dynamics, bound=2.0, dynamics_power=power, solver="ddim")(present, condition, noise_from(0, 4))
            for model in (planner, other)
        ]
        for power in (0.0, 1.0)
    }
    assert torch.equal(*results[0.0])
    assert not torch.allclose(*results[1.0])


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_fused_is_the_weighted_estimate(planner: Planner, dynamics: Dynamics, power: float) -> None:
    present, condition = given(2)
    bound = 1.5
    sampler = make(planner, dynamics, bound=bound, dynamics_power=power, solver="ddim", steps=5, grid="uniform")
    found = sampler(present, condition, noise_from(0, 2))
    x = 0.5 * noise_from(0, 2)()
    grid = [99, 74, 50, 25, 0]
    for level, following in zip(grid, [*grid[1:], None]):
        x[:, 0, :D] = present
        kept = SCHEDULE.alpha_bar[level].item()
        then = 1.0 if following is None else SCHEDULE.alpha_bar[following].item()
        levels = torch.full((2,), level)
        with torch.no_grad():
            plan = clean_estimate(planner, planner(x, levels, condition, torch.ones(2)), x, level).clamp(-bound, bound)
            real = clean_estimate(dynamics, dynamics(x, levels), x, level, D).clamp(-bound, bound)
        states = kept**power * real + (1 - kept**power) * plan[..., :D]
        clean = torch.cat([states, plan[..., D:]], -1)
        noise = (x - kept**0.5 * clean) / (1 - kept) ** 0.5
        x = then**0.5 * clean + (1 - then) ** 0.5 * noise
    x[:, 0, :D] = present
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_release_is_two_posterior_means(planner: Planner, dynamics: Dynamics) -> None:
    """Transcribed with the betas of Ho et al. 2020, equation 7."""
    present, condition = given(2)
    bound, temperature = 1.5, 0.7
    sampler = make(
        planner,
        dynamics,
        bound=bound,
        composition="release",
        solver="ddpm",
        steps=5,
        grid="uniform",
        temperature=temperature,
    )
    found = sampler(present, condition, noise_from(0, 2))
    noise = noise_from(0, 2)
    x = temperature * noise()
    grid = [99, 74, 50, 25, 0]
    for level, following in zip(grid, [*grid[1:], None]):
        kept = SCHEDULE.alpha_bar[level].item()
        then = 1.0 if following is None else SCHEDULE.alpha_bar[following].item()
        beta = 1 - kept / then
        of_clean, of_noisy = then**0.5 * beta / (1 - kept), (1 - beta) ** 0.5 * (1 - then) / (1 - kept)
        levels = torch.full((2,), level)
        x[:, 0, :D] = present
        with torch.no_grad():
            real = clean_estimate(dynamics, dynamics(x, levels), x, level, D).clamp(-bound, bound)
            x[..., :D] = of_clean * real + of_noisy * x[..., :D]
            x[:, 0, :D] = present
            plan = clean_estimate(planner, planner(x, levels, condition, torch.ones(2)), x, level).clamp(-bound, bound)
        x = of_clean * plan + of_noisy * x
        if following is not None:
            x = x + temperature * ((1 - then) / (1 - kept) * beta) ** 0.5 * noise()
    x[:, 0, :D] = present
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_warm_start_begins_at_the_noised_plan(planner: Planner, dynamics: Dynamics) -> None:
    present, condition = given(3)
    calls = watch(planner)
    sampler = make(planner, dynamics, steps=6, warm_start=2, temperature=0.4)
    start = torch.randn(3, H, D + M, generator=torch.Generator().manual_seed(5))
    sampler(present, condition, noise_from(1, 3), start)
    level = SCHEDULE.grid(6)[4]
    kept = SCHEDULE.alpha_bar[level].item()
    expected = kept**0.5 * start + (1 - kept) ** 0.5 * 0.4 * noise_from(1, 3)()
    expected[:, 0, :D] = present
    assert [int(call.levels[0]) for call in calls] == SCHEDULE.grid(6)[4:]
    torch.testing.assert_close(calls[0].x, expected)


def test_dpmpp_2m_forgets_its_history_between_calls(planner: Planner, dynamics: Dynamics) -> None:
    present, condition = given(3)
    sampler = make(planner, dynamics, bound=2.0)
    first = sampler(present, condition, noise_from(0, 3))
    sampler(-present, condition, noise_from(1, 3))
    assert torch.equal(sampler(present, condition, noise_from(0, 3)), first)


@pytest.mark.parametrize("composition", PLAIN)
def test_plans_stay_within_the_data(planner: Planner, dynamics: Dynamics, composition: str) -> None:
    present, condition = given(3)
    sampler = make(planner, dynamics, bound=0.1, composition=composition, solver="ddpm", temperature=2.0, guidance=3.0)
    x = sampler(0 * present, condition, noise_from(0, 3))
    assert x.abs().max() <= 0.1 + 1e-6
    assert x.abs().max() > 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"composition": "fuse"}, r"sampler\.composition: .*fused, release, planner.*found 'fuse'"),
        ({"solver": "euler"}, r"sampler\.solver: .*dpmpp_2m, ddim, ddpm.*found 'euler'"),
        ({"composition": "release"}, r"sampler\.solver: .*must be ddpm.*found 'ddim'"),
        ({"steps": 0}, r"sampler\.steps: must be at least 1.*found 0"),
        ({"candidates": 0}, r"sampler\.candidates: must be at least 1.*found 0"),
        ({"temperature": -0.1}, r"sampler\.temperature: must be at least 0.*found -0\.1"),
        ({"steps": 4, "warm_start": 5}, r"sampler\.warm_start: must be at most sampler\.steps = 4.*found 5"),
        ({"warm_start": -1}, r"sampler\.warm_start: must be at least 0.*found -1"),
        ({"eta": 1.5, "solver": "ddim"}, r"sampler\.eta: must lie in 0\.\.1.*found 1\.5"),
        ({"eta": 0.5, "solver": "ddpm"}, r"sampler\.eta: must be 0 with the solver ddpm, found 0\.5"),
        ({"target": 1.1}, r"sampler\.target: must lie in 0\.\.1, found 1\.1"),
        ({"dynamics_power": -1.0}, r"sampler\.dynamics_power: must be at least 0, found -1\.0"),
        ({"deadline_ms": -1.0}, r"sampler\.deadline_ms: must be at least 0, found -1\.0"),
        ({"guidance_interval": [0.5, 0.2]}, r"sampler\.guidance_interval: must be \[low, high\].*found \[0\.5, 0\.2\]"),
        ({"guidance_interval": [0.5, 1.2]}, r"sampler\.guidance_interval: .*high <= 1, found \[0\.5, 1\.2\]"),
        ({"guidance_interval": [0, 1, 1]}, r"sampler\.guidance_interval: .*found \[0, 1, 1\]"),
        ({"chunk": 0}, r"sampler\.chunk: must be at least 1, found 0"),
        ({"chunk": -1}, r"sampler\.chunk: must be at least 1, found -1"),
        ({"safe_action": [float("nan")]}, r"sampler\.safe_action: must be finite numbers, found \[nan\]"),
        ({"safe_action": ["a"]}, r"sampler\.safe_action: must be finite numbers, found \['a'\]"),
        ({"guidance_interval": ["a", 1]}, r"sampler\.guidance_interval: .*found \['a', 1\]"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SamplerConfig(**settings)


def test_more_steps_than_levels_and_no_dynamics(planner: Planner, dynamics: Dynamics) -> None:
    with pytest.raises(InputError, match=r"sampler\.steps.*1\.\.100.*found 101"):
        make(planner, dynamics, steps=101)
    with pytest.raises(InputError, match=r"sampler\.composition: 'fused' needs a dynamics model"):
        make(planner, None)
