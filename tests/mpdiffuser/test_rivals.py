"""The rivals against closed forms and simulated systems."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mpdiffuser.models.inverse import InverseDynamics
from mpdiffuser.models.iql import IQL
from mpdiffuser.models.return_model import ReturnModel
from mpdiffuser.rivals import RIVALS, models_of, require_models, rival_config
from mpdiffuser.rivals.base import PARTS
from mpdiffuser.rivals.d_mpc import ProposalSampler
from mpdiffuser.rivals.decision_diffuser import StateSampler
from mpdiffuser.rivals.diffuser import GuidedSampler

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import ActionPlanner, CleanDynamics, Dynamics, Planner, StatePlanner, hold
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from vision.encoder import IdentityEncoder

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
SCHEDULE = NoiseSchedule(100)
LOW, HIGH = torch.full((D + M,), -1e6), torch.full((D + M,), 1e6)
A = torch.tensor([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 0.7]])
B = torch.tensor([[0.5, 0.0], [0.0, 1.0], [0.3, -0.4]])


def rollout(present: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """States (B, H, D) of the system z' = A z + B u from present (B, D) under actions (B, H, M)."""
    states = [present]
    for k in range(actions.shape[1] - 1):
        states.append(states[-1] @ A.T + actions[:, k] @ B.T)
    return torch.stack(states, 1)


def noise_from(seed: int, batch: int) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(batch, H, D + M, generator=generator)


def stub(call: Callable[..., torch.Tensor], **config: Any) -> Any:
    """What a sampler needs of a model that predicts clean data."""

    class Stub:
        def __init__(self) -> None:
            self.config = {"prediction": "sample", "latent_dim": D, **config}

        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            return call(*inputs)

    return Stub()


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 100), ("ddim", 100), ("dpmpp_2m", 20)])
def test_diffusers_guidance_samples_the_tilted_gaussian(solver: str, steps: int) -> None:
    """p(x) exp(g c x) with p = N(0, v) is N(g v c, v); J_t = c E[x_0 | x_t] is its exact guide."""
    v, c, g, batch = 0.6, torch.linspace(-1, 1, D + M), 0.8, 4000

    def posterior_mean(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        alpha, sigma = SCHEDULE.coefficients(levels, 3)
        return alpha * v / (alpha**2 * v + sigma**2) * x

    planner = stub(lambda x, levels, condition, keep: posterior_mean(x, levels))
    config = SamplerConfig("planner", steps=steps, solver=solver, temperature=1.0, guidance=g)
    sampler = GuidedSampler(planner, None, SCHEDULE, LOW, HIGH, config)
    sampler.return_model = lambda x, levels: (posterior_mean(x, levels)[:, 1:] * c).sum((1, 2))  # type: ignore[assignment]
    x = sampler(torch.zeros(batch, D), torch.zeros(batch, 1), noise_from(0, batch))[:, 1:]
    torch.testing.assert_close(x.mean((0, 1)), g * v * c, atol=0.02, rtol=0)
    torch.testing.assert_close(x.var((0, 1)), torch.full((D + M,), v), atol=0.06, rtol=0)


def test_diffuser_guides_only_inside_the_interval() -> None:
    planner = stub(lambda x, levels, condition, keep: 0 * x)
    config = SamplerConfig("planner", guidance=2.0, guidance_interval=(0.2, 0.8))
    sampler = GuidedSampler(planner, None, SCHEDULE, LOW, HIGH, config)
    sampler.return_model = lambda x, levels: x.sum((1, 2))  # type: ignore[assignment]
    x = torch.randn(2, H, D + M)
    for level in range(0, 100, 7):
        sigma, alpha = float(SCHEDULE.sigmas[level]), float(SCHEDULE.alphas[level])
        expected = 2.0 * sigma**2 / alpha if 0.2 <= sigma <= 0.8 else 0.0
        torch.testing.assert_close(sampler.planned(x, level, torch.zeros(2, 1)), torch.full_like(x, expected))


def test_inverse_dynamics_of_a_linear_system() -> None:
    torch.manual_seed(0)
    inverse = InverseDynamics(D, M, hidden=64)
    optimizer = torch.optim.Adam(inverse.parameters(), 3e-3)

    def batch(size: int) -> dict[str, torch.Tensor]:
        actions = torch.randn(size, H, M)
        mask = torch.ones(size, H)
        mask[: size // 2, 4:] = 0  # the end of an episode: what follows is no transition
        latents = rollout(torch.randn(size, D), actions)
        latents[: size // 2, 5:] = latents[: size // 2, 4:5]
        return {"latents": latents, "actions": actions * mask[..., None], "action_mask": mask}

    for _ in range(250):
        optimizer.zero_grad()
        inverse.loss(batch(64), {}, SCHEDULE)["loss"].backward()
        optimizer.step()
    fresh = batch(200)
    error = (inverse(fresh["latents"]) - fresh["actions"][:, :-1])[100:]
    assert error.square().mean() < 0.02  # of variance 1


def test_state_plans_get_the_actions_that_lead_through_them() -> None:
    wanted = torch.randn(4, H, M, generator=torch.Generator().manual_seed(0))
    states = rollout(torch.randn(4, D), wanted)
    planner = stub(lambda x, levels, condition, keep: torch.cat([states, 0 * x[..., D:]], -1))
    sampler = StateSampler(planner, None, SCHEDULE, LOW, HIGH, SamplerConfig("planner"))
    exact = lambda z: (z[:, 1:] - z[:, :-1] @ A.T) @ torch.linalg.pinv(B).T  # noqa: E731
    sampler.inverse = stub(exact)
    x = sampler(states[:, 0], torch.zeros(4, 1), noise_from(1, 4))
    torch.testing.assert_close(x[..., :D], states, atol=1e-4, rtol=0)
    torch.testing.assert_close(rollout(states[:, 0], x[..., D:]), states, atol=1e-3, rtol=0)


@pytest.mark.parametrize("warm_start", [0, 3])
def test_d_mpc_draws_what_its_proposals_lead_to(warm_start: int) -> None:
    """With the exact denoiser of a deterministic system, which says where the actions it sees lead."""
    proposals = torch.randn(4, H, M, generator=torch.Generator().manual_seed(0))
    seen = []

    def lead(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        seen.append((int(levels[0]), x[..., D:].clone()))
        return rollout(x[:, 0, :D], x[..., D:])

    planner = stub(lambda x, levels, condition, keep: torch.cat([0 * x[..., :D], proposals], -1))
    config = SamplerConfig("sequential", steps=6, warm_start=warm_start, temperature=1.0)
    sampler = ProposalSampler(planner, stub(lead), SCHEDULE, LOW, HIGH, config)
    present = torch.randn(4, D)
    start = torch.randn(4, H, D + M) if warm_start else None
    x = sampler(present, torch.zeros(4, 1), noise_from(1, 4), start)
    torch.testing.assert_close(x[..., D:], proposals, atol=1e-4, rtol=0)
    torch.testing.assert_close(x[..., :D], rollout(present, x[..., D:]), atol=1e-4, rtol=0)
    assert [level for level, _ in seen] == SCHEDULE.grid(6)
    assert all(torch.equal(actions, x[..., D:]) for _, actions in seen)  # never noisy


@pytest.mark.parametrize("kind", [CleanDynamics, Dynamics])
def test_actions_in_the_training_of_the_dynamics(kind: type[Dynamics], monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind(**SIZES)
    batch = {"latents": torch.randn(5, H, D), "actions": torch.randn(5, H, M), "mask": torch.ones(5, H)}
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, levels: seen.append(x) or forward(x, levels))
    model.loss(batch, model.draw(5, SCHEDULE, torch.Generator().manual_seed(0)), SCHEDULE)
    assert torch.equal(seen[0][..., D:], batch["actions"]) == (kind is CleanDynamics)
    assert torch.equal(seen[0][:, 0, :D], batch["latents"][:, 0])


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


@pytest.mark.parametrize(("expectile", "beta"), [(0.7, 1.0), (0.9, 3.0)])
def test_iql_on_two_arms(expectile: float, beta: float) -> None:
    """Action 0.5 pays 1 with share p of the data, action -0.5 pays 0, and then it ends. V is the expectile, which
    solves tau p (1 - V) = (1 - tau) (1 - p) V; the policy's mean weighs the arms by exp(beta (Q - V))."""
    torch.manual_seed(0)
    p, size = 0.25, 64
    good = torch.arange(size) < p * size
    batch = {
        "latents": torch.zeros(size, 1),
        "next_latents": torch.zeros(size, 1),
        "actions": torch.where(good, 0.5, -0.5)[:, None],
        "rewards": good.float(),
        "continuations": torch.zeros(size),
    }
    model = IQL(1, 1, hidden=16, expectile=expectile, inverse_temperature=beta, target_rate=0.1)
    optimizer = torch.optim.Adam([q for q in model.parameters() if q.requires_grad], 2e-2)
    for _ in range(250):
        optimizer.zero_grad()
        model.loss(batch, {}, SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    value = expectile * p / (expectile * p + (1 - expectile) * (1 - p))
    assert model.value(torch.zeros(1, 1)).item() == pytest.approx(value, abs=0.02)
    weights = p * np.exp(beta * (1 - value)), (1 - p) * np.exp(-beta * value)
    mean = 0.5 * (weights[0] - weights[1]) / sum(weights)
    assert model(torch.zeros(1, 1)).item() == pytest.approx(mean, abs=0.03)


def test_iql_bootstraps_and_its_target_follows_slowly() -> None:
    """A reward of 1 for ever is worth 1 / (1 - g)."""
    torch.manual_seed(0)
    model = IQL(1, 1, hidden=16, discount=0.5, target_rate=0.1)
    zeros, ones = torch.zeros(32, 1), torch.ones(32)
    batch = {"latents": zeros, "next_latents": zeros, "actions": zeros, "rewards": ones, "continuations": ones}
    before = [q.clone() for q in model.target.parameters()]
    with torch.no_grad():
        for q in model.q.parameters():
            q.add_(1)
    model.after_step()
    for old, online, new in zip(before, model.q.parameters(), model.target.parameters()):
        torch.testing.assert_close(new, old + 0.1 * (online - old))
    optimizer = torch.optim.Adam([q for q in model.parameters() if q.requires_grad], 2e-2)
    for _ in range(250):
        optimizer.zero_grad()
        model.loss(batch, {}, SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    assert model.value(zeros[:1]).item() == pytest.approx(2.0, abs=0.1)


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


@pytest.fixture
def ours(randomize) -> MPDiffuserPipeline:
    random = np.random.default_rng(0)
    normalizers = Normalizer(D).fit(random.normal(size=(200, D))), Normalizer(M).fit(random.uniform(-1, 1, (200, M)))
    none = dict.fromkeys(("condition", "planner", "dynamics", "ranker"))
    info = {"task": "none", "data": "abc"}
    return MPDiffuserPipeline(IdentityEncoder(D, M), *normalizers, **none, schedule=SCHEDULE, info=info)


@pytest.fixture
def folder(ours: MPDiffuserPipeline, randomize, tmp_path) -> Any:
    """A pipeline folder with all models of the rivals and none of ours."""
    random = np.random.default_rng(0)
    critic = randomize(Ranker(D, M, hidden=16))
    critic.returns.fit(random.normal(size=(50, 1)))
    returns = Marginals(1).fit(np.linspace(0, 10, 1001))
    made = {"inverse": InverseDynamics(D, M, 16), "critic": critic, "logged_returns": returns}
    small = {key: SIZES[key] for key in SIZES}
    for name, kind in PARTS.items():
        model = made[name] if name in made else randomize(kind(**small))
        model.save_pretrained(tmp_path / name)
    ours.save_pretrained(tmp_path)
    return tmp_path


def plan_of(rival: Any, name: str, seed: int = 0, **settings: Any) -> Any:
    config = rival_config(name, {"steps": 3, "candidates": 4, **settings})
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    latents = torch.randn(2, D, generator=torch.Generator().manual_seed(9))
    return rival(latents, rival.sampler(config), generators)


@pytest.mark.parametrize("name", list(RIVALS))
def test_plans_of_each_rival_from_its_folder(folder, name: str) -> None:
    """In the pipeline's own interface; the same from another load; another from another seed."""
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    rivals = [RIVALS[name].load(pipeline, folder) for _ in range(2)]
    first, again, other = (plan_of(rivals[i], name, seed) for i, seed in ((0, 0), (1, 0), (0, 5)))
    assert first.latents.shape == (2, 4, H, D) and first.actions.shape == (2, 4, H, M)
    assert np.isfinite(first.latents).all() and (abs(first.actions) <= 1).all()
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)
    np.testing.assert_array_equal(first.chosen, first.scores.argmax(1))
    ranked = name in ("diffuser", "d_mpc", "sample_and_rank")
    assert (first.scores.std(1) > 0).all() == ranked
    if not RIVALS[name].foresees:
        np.testing.assert_array_equal(first.latents, np.broadcast_to(first.latents[:, :, :1], first.latents.shape))


def test_the_critic_ranks(folder) -> None:
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    critic = Ranker.from_pretrained(folder / "critic")
    for name in ("d_mpc", "sample_and_rank"):
        plan = plan_of(RIVALS[name].load(pipeline, folder), name)
        scores = critic.scores(torch.from_numpy(plan.latents), torch.from_numpy(plan.actions))
        np.testing.assert_allclose(plan.scores, scores.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "asks"), [("decision_diffuser", True), ("sample_and_rank", False)])
def test_who_asks_for_a_return(folder, name: str, asks: bool) -> None:
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    rival = RIVALS[name].load(pipeline, folder)
    plans = [plan_of(rival, name, target=target) for target in (0.1, 0.9)]
    assert np.array_equal(plans[0].latents, plans[1].latents) != asks
    if asks:
        wish = rival.condition.denormalize(rival.target(torch.zeros(3, D), 0.9))
        torch.testing.assert_close(wish, torch.full((3, 1), 9.0), atol=0.01, rtol=0)


def test_models_of_methods_and_what_a_folder_lacks(folder) -> None:
    assert models_of(["random", "cloning"]) == {"cloning"}
    shared = [set(RIVALS[name].roles.values()) for name in ("diffusion_policy", "d_mpc")]
    assert shared[0] & shared[1] == {"action_planner"}
    for name in RIVALS:
        require_models(name, folder)
    with pytest.raises(InputError, match=r"ours needs planner, dynamics, ranker, which .* train with method=ours"):
        require_models("ours", folder)


def test_a_wrong_setting_of_a_rival_is_named() -> None:
    with pytest.raises(InputError, match=r"rivals.d_mpc.candidates: must be at least 1, found 0"):
        rival_config("d_mpc", {"candidates": 0})
