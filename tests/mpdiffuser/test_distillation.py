"""The student of the sampler's plans."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from mpdiffuser.distillation import Student, distil, distilled, distilled_config, teaching, wish

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import to_go
from vision.encoder import IdentityEncoder

D, M, H = 3, 2, 8
CPU = torch.device("cpu")
CONFIG = SamplerConfig(steps=3, candidates=2, engine="torch", target=0.7)
SIZES: dict[str, Any] = {"latent_dim": D, "action_dim": M, "horizon": H, "width": 8, "multipliers": (1,)}


@pytest.fixture
def pipeline(make_episodes, randomize) -> tuple[MPDiffuserPipeline, Any, np.ndarray]:
    episodes = make_episodes([30, 20])
    returns = to_go(episodes["rewards"], episodes, 0.9)[:, None]
    normalizers = Normalizer(D).fit(episodes["observations"]), Normalizer(M).fit(episodes["actions"])
    ranker = randomize(Ranker(D, M, hidden=8))
    ranker.returns.fit(returns)
    models = [randomize(kind(**SIZES), scale=0.5).eval() for kind in (Planner, Dynamics)]
    condition = Marginals(1).fit(returns)
    made = MPDiffuserPipeline(IdentityEncoder(D, M), *normalizers, condition, *models, ranker, NoiseSchedule())
    return made, episodes, returns


def fit_for(tmp_path, steps: int, seen: dict[str, Any]) -> Any:
    def fit(name: str, model: Any, data: Any, validation: Any, **more: Any) -> Any:
        seen.update(more, name=name, data=data, before={k: v.clone() for k, v in model.state_dict().items()})
        config = TrainConfig(steps=steps, batch_size=32, learning_rate=3e-3, warmup=5, ema_decay=0.9)
        return Trainer(name, model, data, validation, config, tmp_path / name, Accelerator(cpu=True)).train()

    return fit


def test_a_student_comes_near_its_teacher(pipeline, tmp_path) -> None:
    """In one pass, from the noise that the teacher started from; it begins as the planner."""
    ours, episodes, returns = pipeline
    seen: dict[str, Any] = {}
    student = distil(ours, CONFIG, (episodes, episodes), (returns, returns), fit_for(tmp_path, 300, seen), CPU)
    assert seen["name"] == "student" and seen["teacher"]["steps"] == 3 and seen["teacher"]["target"] == 0.7
    for key, value in ours.planner.state_dict().items():
        assert torch.equal(seen["before"][key], value)
    ours.config["info"]["distilled"] = seen["teacher"]
    student.save_pretrained(tmp_path / "folder" / "student")
    quick = distilled(ours, tmp_path / "folder")
    latents = torch.from_numpy(np.array(episodes["observations"][5:25], np.float32))
    generators = lambda: [torch.Generator().manual_seed(i) for i in range(20)]  # noqa: E731
    teacher = ours(latents, ours.sampler(CONFIG), generators())
    config = distilled_config(CONFIG, ours.config["info"])
    plan = quick(latents, quick.sampler(config), generators())
    once = ours(latents, ours.sampler(replace(CONFIG, composition="planner", steps=1)), generators())
    error, untaught = (np.square(p.actions - teacher.actions).mean() for p in (plan, once))
    assert error < 0.6 * untaught
    assert np.square(plan.latents - teacher.latents).mean() < 0.6 * np.square(once.latents - teacher.latents).mean()


def test_the_loss_by_hand(pipeline) -> None:
    """A student that says `clean` loses the weighted squared distance from the teacher's plan."""
    ours, _, _ = pipeline
    student = Student(**SIZES, prediction="sample", first_action_weight=3.0)
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)  # so it says 0
    student.teacher = ours.sampler(replace(CONFIG, candidates=1))
    random = student.draw(4, NoiseSchedule(), torch.Generator().manual_seed(1))
    batch = {"latents": torch.randn(4, H, D), "condition": torch.randn(4, 1)}
    found = student.loss(batch, random, NoiseSchedule())["loss"].item()
    plan = student.teacher(batch["latents"][:, 0], batch["condition"], lambda: random["noise"])
    errors = []
    for row in plan.tolist():
        total = 3 * sum(u * u for u in row[0][D:]) + sum(v * v for step in row[1:] for v in step)
        errors.append(total / (3 * M + (H - 1) * (D + M)))
    assert found == pytest.approx(float(np.mean(errors)), rel=1e-4)


def test_what_a_student_is_asked_for(pipeline) -> None:
    ours, episodes, returns = pipeline
    found = wish(ours, episodes, returns, 0.7)
    with torch.no_grad():
        asked = ours.target(torch.from_numpy(np.array(episodes["observations"], np.float32)), 0.7)
    np.testing.assert_allclose(found, ours.condition.denormalize(asked), rtol=1e-5)


@pytest.mark.parametrize("settings", [{"solver": "ddpm"}, {"eta": 0.5}, {"composition": "sequential"}])
def test_a_teacher_that_draws_noise_is_refused(pipeline, settings: dict[str, Any]) -> None:
    ours, episodes, returns = pipeline
    with pytest.raises(InputError, match="solver=ddim"):
        distil(ours, replace(CONFIG, **settings), (episodes,) * 2, (returns,) * 2, lambda *args, **more: None, CPU)


def test_a_teacher_draws_with_ddim_in_the_place_of_ddpm() -> None:
    assert teaching(SamplerConfig(solver="ddpm", steps=7)) == SamplerConfig(solver="ddim", steps=7)
    for kept in (SamplerConfig(solver="dpmpp_2m"), SamplerConfig(solver="ddpm", composition="release")):
        assert teaching(kept) == kept


def test_settings_of_a_student() -> None:
    config = distilled_config(SamplerConfig(steps=8, guidance=2.0, candidates=7), {"distilled": {"temperature": 0.3}})
    assert (config.steps, config.guidance, config.composition) == (1, 1.0, "planner")
    assert (config.candidates, config.temperature) == (7, 0.3)


@pytest.mark.parametrize("info", [{}, {"distilled": 3}, {"distilled": {"temperature": "warm"}}])
def test_a_student_of_unknown_temperature_is_refused(info: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"info.distilled: must hold the student's temperature"):
        distilled_config(SamplerConfig(), info)
