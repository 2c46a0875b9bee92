"""Distillation: a student network samples plans in one pass instead of the alternating sampler.

The teacher is the alternating sampler. If its solver adds no noise, a plan is a function of its initial noise, the
present state and the target. The student has the architecture and the initial weights of the planner. It learns this
function, with all levels, both models and the guidance, in one pass at the noisiest level (knowledge distillation:
Luhman and Luhman 2021). The candidates of student and teacher differ in their initial noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.methods.base import Planning, Setup
from mpdiffuser.methods.mpdiffuser import MPDiffuser
from mpdiffuser.models.denoisers import Planner, hold, weighted_error
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.recipe import Fit, Recipe, TrainingData
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule, moves

# the settings that a plan depends on; the other settings are for the controller or the speed
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
    """A planner that samples in one pass. Arguments and errors as `Planner`.

    Attributes:
        teacher: the sampler whose plans it learns; set before training.
    """

    teacher: Sampler

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the initial noise (B, H, d + m) of plans."""
        c = self.config
        return {"noise": torch.randn(batch, c["horizon"], c["latent_dim"] + c["action_dim"], generator=generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the weighted squared error to the teacher's plans.

        The plans start from the first states and have the conditions of a batch of `Windows`.
        """
        present, condition, noise = batch["latents"][:, 0], self.condition(batch["condition"]), random["noise"]
        plan = self.teacher(present, condition, lambda: noise).clone()
        x = hold(self.teacher.temperature * noise, present)
        levels = torch.full((len(x),), schedule.config["num_levels"] - 1, device=x.device)
        output = self(x, levels, condition, torch.ones(len(x), device=x.device))
        drawn = self.to_clean(output, x, levels, schedule)
        weight = torch.ones_like(drawn)
        weight[:, 0, : present.shape[1]] = 0  # z_0 is given
        weight[:, 0, present.shape[1] :] = self.config["first_action_weight"]
        return {"loss": weighted_error(drawn, plan, weight)}


def teacher_config(config: SamplerConfig) -> SamplerConfig:
    """Return a teacher's settings: ddim instead of ddpm, which adds noise between levels, and a number of levels."""
    released = config.composition == "release"  # supports only ddpm
    solver = "ddim" if config.solver == "ddpm" and not released else config.solver
    return replace(config, solver=solver, steps=config.levels)


def plan_settings(config: SamplerConfig) -> dict[str, Any]:
    """Return the settings that a student's plans depend on."""
    return {key: value for key, value in asdict(config).items() if key in PLAN_SETTINGS}


def teacher_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the student's settings from the whole configuration.

    Raises:
        InputError: for a teacher that draws noise between levels: its plans are no function of their initial noise.
    """
    config, schedule = teacher_config(SamplerConfig(**cfg["sampler"])), NoiseSchedule()
    updates = moves(schedule, schedule.grid(config.steps, config.grid), config.solver, config.eta)
    if any(move.noise_std for move in updates) or config.composition == "sequential":
        raise InputError(
            "sampler: a student needs a teacher that draws no noise between levels: solver=ddim (eta=0) or dpmpp_2m, "
            "and no sequential composition"
        )
    return {"teacher": plan_settings(config)}


def build_student(data: TrainingData) -> Student:
    """Build a student with the configuration and the weights of the trained planner."""
    planner = data.trained["planner"]
    student = Student(**{key: value for key, value in planner.config.items() if not key.startswith("_")})
    student.load_state_dict(planner.state_dict())
    return student


def fit_student(fit: Fit, student: Student, data: TrainingData) -> Student:
    """Train a student on the pipeline's plans from all states of the episodes.

    Raises:
        InputError: for a teacher that adds noise between levels, since its plans also depend on that noise.
    """
    settings = data.settings["teacher"]
    data.info["distilled"] = settings
    own = {name: data.trained[name] for name in ("planner", "dynamics", "ranker")}
    device = own["planner"].device
    pipeline = MPDiffuserPipeline(
        None,  # type: ignore[arg-type]  # plans start from latents
        data.latents,
        data.actions,
        data.shared["condition"],
        **own,
        schedule=data.schedule,
    ).to("cpu")  # windows are computed on the CPU
    targets = [
        expected_targets(pipeline, part, target, settings["target"])
        for part, target in zip(data.parts, data.logged_targets)
    ]
    windows = [data.windows(part, each, data.shared["condition"]) for part, each in enumerate(targets)]
    student.teacher = pipeline.to(device).sampler(SamplerConfig(**settings, engine="torch"))
    return fit("student", student, *windows)


@torch.inference_mode()
def expected_targets(pipeline: MPDiffuserPipeline, episodes: Episodes, targets: np.ndarray, level: float) -> np.ndarray:
    """Return the targets (M, c) of a pipeline at each row.

    Args:
        pipeline: on the CPU.
        episodes: the `observations` are latents (M, d).
        targets: logged targets (M, c); their cost_to_go is used if the data have costs.
        level: of the expectile (see `MPDiffuserPipeline.target`).
    """
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
    """Samples plans in one pass of the student."""

    name = "distilled"
    label = "MPDiffuser, distilled"
    color = ("#1f8f99", "#5fc7d0")
    summary = "A student of MPDiffuser that draws such plans in one pass of one network."
    order = 92
    needs_rewards = True
    models = (*MPDiffuser.models, STUDENT)
    evaluated_with = ("planner", "mpdiffuser")

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        """Return a pipeline with the student as its planner, and settings for one level."""
        pipeline, student = setup.pipeline, setup.model("student", Student)
        parts = dict(pipeline.components) | {"planner": student, "dynamics": None}
        drawing = MPDiffuserPipeline(**parts, info=pipeline.config["info"]).to(pipeline.device)
        return drawing, student_config(setup.sampler, pipeline.config["info"])


def student_config(config: SamplerConfig, info: Mapping[str, Any]) -> SamplerConfig:
    """Return the sampler settings of a student: one level, and the temperature of its training.

    Raises:
        InputError: if the pipeline's info does not have that temperature.
    """
    known = info.get("distilled")
    temperature = known.get("temperature") if isinstance(known, Mapping) else None
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise InputError(f"the pipeline's info.distilled: must hold the student's temperature, found {known!r}")
    return replace(config, composition="planner", steps=1, guidance=1.0, warm_start=0, temperature=temperature)
