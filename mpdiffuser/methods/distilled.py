"""One network pass in place of the alternating sampler: a student learns the plans that the sampler draws.

With a solver that draws no noise, a plan is a function of its initial noise, the present state and the target. The
student, a copy of the planner, learns that function: all levels, both models and the guidance in one pass at the
noisiest level (knowledge distillation: Luhman and Luhman 2021). Its candidates differ by their initial noise, as the
teacher's do.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.methods.base import Fit, Planning, Recipe, Setup, TrainingData
from mpdiffuser.methods.mpdiffuser import MPDiffuser
from mpdiffuser.models.denoisers import Planner, hold, weighted_error
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import TEMPERATURE, Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

# the settings that a plan depends on; the others belong to the controller, or to speed
PLAN_SETTINGS = (
    "composition",
    "steps",
    "grid",
    "solver",
    "eta",
    "guidance",
    "guidance_interval",
    "temperature",
    "dynamics_power",
    "target",
)


class Student(Planner):
    """A planner that draws in one pass. Arguments and errors as `Planner`."""

    teacher: Sampler

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The initial noise (B, H, d + m) of plans."""
        c = self.config
        return {"noise": torch.randn(batch, c["horizon"], c["latent_dim"] + c["action_dim"], generator=generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Squared error to the teacher's plans, from the first state and with the condition of a batch of `Windows`."""
        present, condition, noise = batch["latents"][:, 0], batch["condition"], random["noise"]
        plan = self.teacher(present, condition, lambda: noise).clone()
        x = hold(self.teacher.temperature * noise, present)
        levels = torch.full((len(x),), schedule.config["num_levels"] - 1, device=x.device)
        output = self(x, levels, condition, torch.ones(len(x), device=x.device))
        drawn = schedule.to_clean(self.config["prediction"], output, x, levels)
        weight = torch.ones_like(drawn)
        weight[:, 0, : present.shape[1]] = 0  # z_0 is given
        weight[:, 0, present.shape[1] :] = self.config["first_action_weight"]
        return {"loss": weighted_error(drawn, plan, weight)}


def teacher_config(config: SamplerConfig) -> SamplerConfig:
    """A teacher's settings: ddim where ddpm would draw noise between levels, and a temperature."""
    released = config.composition == "release"  # which moves by ddpm alone
    solver = "ddim" if config.solver == "ddpm" and not released else config.solver
    return replace(config, solver=solver, temperature=TEMPERATURE if config.temperature is None else config.temperature)


def plan_settings(config: SamplerConfig) -> dict[str, Any]:
    """The settings that a student learns."""
    return {key: value for key, value in asdict(config).items() if key in PLAN_SETTINGS}


def teacher_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The student's settings from the whole configuration."""
    return {"teacher": plan_settings(teacher_config(SamplerConfig(**cfg["sampler"])))}


def build_student(data: TrainingData) -> Student:
    planner = data.trained["planner"]
    student = Student(**{key: value for key, value in planner.config.items() if not key.startswith("_")})
    student.load_state_dict(planner.state_dict())
    return student


def fit_student(fit: Fit, student: Student, data: TrainingData) -> Student:
    """Train a student of the pipeline's plans, from all states of the episodes.

    Raises:
        InputError: for a teacher that draws noise between levels: such plans are no function of their initial noise.
    """
    settings = data.settings["teacher"]
    data.info["distilled"] = settings
    own = {name: data.trained[name] for name in ("planner", "dynamics", "ranker")}
    device = own["planner"].device
    pipeline = MPDiffuserPipeline(
        None,  # type: ignore[arg-type]  # plans are drawn from latents
        data.latents,
        data.actions,
        data.shared["condition"],
        **own,
        schedule=data.schedule,
    ).to("cpu")  # where windows are made
    targets = [
        expected_targets(pipeline, part, target, settings["target"])
        for part, target in zip(data.parts, data.logged_targets)
    ]
    windows = [data.windows(part, each, data.shared["condition"]) for part, each in enumerate(targets)]
    student.teacher = pipeline.to(device).sampler(SamplerConfig(**settings, engine="torch"))
    if any(move.noise_std for move in student.teacher.moves) or settings["composition"] == "sequential":
        raise InputError(
            "sampler: a student needs a teacher that draws no noise between levels: solver=ddim (eta=0) or dpmpp_2m, "
            "and no sequential composition"
        )
    return fit("student", student, *windows)


@torch.inference_mode()
def expected_targets(pipeline: MPDiffuserPipeline, episodes: Episodes, targets: np.ndarray, level: float) -> np.ndarray:
    """The targets (M, c) that a pipeline on the CPU asks for at each row, at the row's own cost_to_go if any."""
    latents = torch.from_numpy(np.array(episodes["observations"], np.float32))
    costs = torch.from_numpy(targets[:, 1]) if targets.shape[1] > 1 else None
    return pipeline.condition.denormalize(pipeline.target(latents, level, costs)).numpy()


STUDENT = Recipe(
    "student",
    Student,
    build_student,
    {"steps": 3000, "batch_size": 64, "learning_rate": 5e-4},
    after=("ranker", "planner", "dynamics"),
    options=teacher_options,
    fit_with=fit_student,
)


class Distilled(Planning):
    """Plans from the student in one pass."""

    name = "distilled"
    label = "MPDiffuser, distilled"
    color = ("#1f8f99", "#5fc7d0")
    summary = "A student of MPDiffuser that draws such plans in one pass of one network."
    order = 92
    models = (*MPDiffuser.models, STUDENT)
    evaluated_with = ("planner", "mpdiffuser")

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        pipeline, student = setup.pipeline, setup.model("student", Student)
        parts = dict(pipeline.components) | {"planner": student, "dynamics": None}
        drawing = MPDiffuserPipeline(**parts, info=pipeline.config["info"]).to(pipeline.device)
        return drawing, student_config(setup.sampler, pipeline.config["info"])


def student_config(config: SamplerConfig, info: Mapping[str, Any]) -> SamplerConfig:
    """Settings for a student: one level, at the temperature that it learned.

    Raises:
        InputError: if the pipeline's info does not hold that temperature.
    """
    known = info.get("distilled")
    temperature = known.get("temperature") if isinstance(known, Mapping) else None
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise InputError(f"the pipeline's info.distilled: must hold the student's temperature, found {known!r}")
    return replace(config, composition="planner", steps=1, guidance=1.0, warm_start=0, temperature=temperature)
