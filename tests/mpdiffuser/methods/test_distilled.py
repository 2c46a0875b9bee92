"""The student of the sampler's plans."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mpdiffuser.config import load, settings
from mpdiffuser.errors import InputError
from mpdiffuser.methods import TrainingData
from mpdiffuser.methods.distilled import (
    STUDENT,
    Distilled,
    Student,
    expected_targets,
    student_config,
    teacher_config,
    teacher_options,
)
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import DEFAULT_STEPS, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer

D, M, H = 3, 2, 8
CONFIG = SamplerConfig(steps=3, candidates=2, engine="torch", target=0.7)
SIZES: dict[str, Any] = {"latent_dim": D, "action_dim": M, "horizon": H, "width": 8, "multipliers": (1,)}


@pytest.fixture
def teacher(make_pipeline, make_episodes, randomize) -> tuple[MPDiffuserPipeline, TrainingData]:
    """A pipeline of random weights, and the data that its normalisers are fitted to."""
    parts = (make_episodes([30, 20]),) * 2
    normalizers = Normalizer(D).fit(parts[0]["observations"]), Normalizer(M).fit(parts[0]["actions"])
    data = TrainingData({"discount": 0.9, "horizon": H, "stride": 1}, parts, *normalizers, NoiseSchedule())
    condition = Marginals(1).fit(data.logged_targets[0])
    fitted = {"latents": normalizers[0], "actions": normalizers[1], "condition": condition, "schedule": data.schedule}
    pipeline = make_pipeline(D, M, H, sizes={"multipliers": (1,), "embedding": 64}, **fitted)
    for model in (pipeline.planner, pipeline.dynamics):
        randomize(model, scale=0.5)
    pipeline.ranker.latents, pipeline.ranker.rewards = Normalizer(D), Normalizer(1)
    pipeline.ranker.returns.fit(data.logged_targets[0])
    data.trained |= {name: getattr(pipeline, name) for name in ("planner", "dynamics", "ranker")}
    data.shared["condition"] = condition
    return pipeline, data


def distil(data: TrainingData, config: SamplerConfig, fit: Callable[..., Any]) -> Student:
    """The student that the recipe makes of a teacher with these settings."""
    data.settings = {**data.settings, **teacher_options({"sampler": asdict(config)})}
    return STUDENT.fit(fit, STUDENT.build(data), data)


def fit_for(tmp_path, steps: int, seen: dict[str, Any]) -> Any:
    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        seen.update(name=name, data=data, before={k: v.clone() for k, v in model.state_dict().items()})
        config = TrainConfig(steps=steps, batch_size=32, learning_rate=3e-3, warmup=5, ema_decay=0.9)
        return Trainer(name, model, data, validation, config, tmp_path / name, Accelerator(cpu=True)).train()

    return fit


@pytest.mark.slow
def test_a_student_comes_near_its_teacher(teacher, setup_of, tmp_path) -> None:
    """In one pass, from the noise that the teacher started from; it begins as the planner."""
    pipeline, data = teacher
    seen: dict[str, Any] = {}
    student = distil(data, CONFIG, fit_for(tmp_path, 300, seen))
    assert (
        seen["name"] == "student" and data.info["distilled"]["steps"] == 3 and data.info["distilled"]["target"] == 0.7
    )
    for key, value in pipeline.planner.state_dict().items():
        assert torch.equal(seen["before"][key], value)
    pipeline.register_to_config(info=data.info)
    student.save_pretrained(tmp_path / "folder" / "student")
    setup = replace(setup_of("distilled"), pipeline=pipeline, folder=tmp_path / "folder", sampler=CONFIG)
    quick, config = Distilled.prepare(setup)
    latents = torch.from_numpy(np.array(data.parts[0]["observations"][5:25], np.float32))
    generators = lambda: [torch.Generator().manual_seed(i) for i in range(20)]  # noqa: E731
    wanted = pipeline(latents, pipeline.sampler(CONFIG), generators())
    plan = quick(latents, quick.sampler(config), generators())
    once = pipeline(latents, pipeline.sampler(replace(CONFIG, composition="planner", steps=1)), generators())
    error, untaught = (np.square(p.actions - wanted.actions).mean() for p in (plan, once))
    assert error < 0.6 * untaught
    assert np.square(plan.latents - wanted.latents).mean() < 0.6 * np.square(once.latents - wanted.latents).mean()


def test_the_loss_by_hand(teacher) -> None:
    """A student that says `clean` loses the weighted squared distance from the teacher's plan."""
    pipeline, _ = teacher
    student = Student(**SIZES, prediction="sample", first_action_weight=3.0, bounded=False)
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)  # so it says 0
    student.teacher = pipeline.sampler(replace(CONFIG, candidates=1))
    random = student.draw(4, NoiseSchedule(), torch.Generator().manual_seed(1))
    batch = {"latents": torch.randn(4, H, D), "condition": torch.randn(4, 1)}
    found = student.loss(batch, random, NoiseSchedule())["loss"].item()
    plan = student.teacher(batch["latents"][:, 0], batch["condition"], lambda: random["noise"])
    errors = []
    for row in plan.tolist():
        total = 3 * sum(u * u for u in row[0][D:]) + sum(v * v for step in row[1:] for v in step)
        errors.append(total / (3 * M + (H - 1) * (D + M)))
    assert found == pytest.approx(float(np.mean(errors)), rel=1e-4)


def test_what_a_student_is_asked_for(teacher) -> None:
    pipeline, data = teacher
    episodes = data.parts[0]
    found = expected_targets(pipeline, episodes, data.logged_targets[0], 0.7)
    with torch.no_grad():
        asked = pipeline.target(torch.from_numpy(np.array(episodes["observations"], np.float32)), 0.7)
    np.testing.assert_allclose(found, pipeline.condition.denormalize(asked), rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"composition": "release", "solver": "ddpm"}, {"eta": 0.5}, {"composition": "sequential"}]
)
def test_a_teacher_that_draws_noise_is_refused(changes: dict[str, Any]) -> None:
    """Before any training: the student's settings are computed at the start of a run."""
    with pytest.raises(InputError, match="solver=ddim"):
        teacher_options({"sampler": asdict(replace(CONFIG, **changes))})


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m"])
def test_a_teacher_that_draws_none(teacher, solver: str) -> None:
    """With ddpm, a teacher draws with ddim instead."""
    assert distil(teacher[1], replace(CONFIG, solver=solver), lambda name, *inputs: name) == "student"


def test_a_teacher_draws_with_ddim_in_the_place_of_ddpm() -> None:
    """And with a number of levels where none is set."""
    assert teacher_config(SamplerConfig(solver="ddpm", steps=7)) == SamplerConfig(solver="ddim", steps=7)
    for kept in (SamplerConfig(solver="dpmpp_2m"), SamplerConfig(solver="ddpm", composition="release")):
        assert teacher_config(kept) == replace(kept, steps=DEFAULT_STEPS)


def test_a_student_depends_on_what_shapes_plans_and_on_nothing_else_of_the_sampler() -> None:
    options = settings(load("state", []))

    def taught(**changes: Any) -> Any:
        return STUDENT.settings({**options, "sampler": options["sampler"] | changes}, {})

    for same in ({"candidates": 9}, {"chunk": 2}, {"engine": "torch"}, {"deadline_ms": 5.0}):
        assert taught(**same) == taught()
    for other in ({"steps": 4}, {"target": 0.5}, {"temperature": 0.7}, {"guidance": 2.0}, {"solver": "dpmpp_2m"}):
        assert taught(**other) != taught()


def test_settings_of_a_student() -> None:
    config = student_config(SamplerConfig(steps=8, guidance=2.0, candidates=7), {"distilled": {"temperature": 0.3}})
    assert (config.steps, config.guidance, config.composition) == (1, 1.0, "planner")
    assert (config.candidates, config.temperature) == (7, 0.3)


@pytest.mark.parametrize("info", [{}, {"distilled": 3}, {"distilled": {"temperature": "warm"}}])
def test_a_student_of_unknown_temperature_is_refused(info: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"info.distilled: must hold the student's temperature"):
        student_config(SamplerConfig(), info)
