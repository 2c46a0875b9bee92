"""One network pass in place of the alternating sampler: a student learns the plans that it draws.

With a solver that draws no noise a plan is a function of the noise that it starts from, of the present and of the
target. The student, a planner that begins as a copy of ours, learns that function: all levels, both models and the
guidance in one pass at the noisiest level (knowledge distillation: Luhman and Luhman 2021). Its candidates differ by
the noise they start from, as the teacher's do.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Planner, hold, weighted_error
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.windows import Windows

# what a plan depends on; the rest of the settings are the controller's, or say how fast
SHAPING = ("composition", "steps", "grid", "solver", "guidance", "guidance_interval", "temperature", "dynamics_power")


class Student(Planner):
    """A planner that draws in one pass. Arguments and errors as `Planner`."""

    teacher: Sampler

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The noise (B, H, d + m) that a plan starts from."""
        c = self.config
        return {"noise": torch.randn(batch, c["horizon"], c["latent_dim"] + c["action_dim"], generator=generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Error of the plans from the present of a batch of `Windows`, whose condition the teacher is asked for."""
        present, condition, noise = batch["latents"][:, 0], batch["condition"], random["noise"]
        plan = self.teacher(present, condition, lambda: noise).clone()
        x = hold(self.teacher.config.temperature * noise, present)
        levels = torch.full((len(x),), schedule.config["num_levels"] - 1, device=x.device)
        output = self(x, levels, condition, torch.ones(len(x), device=x.device))
        drawn = schedule.to_clean(self.config["prediction"], output, x, levels)
        weight = torch.ones_like(drawn)
        weight[:, 0, : present.shape[1]] = 0  # z_0 is given
        weight[:, 0, present.shape[1] :] = self.config["first_action_weight"]
        return {"loss": weighted_error(drawn, plan, weight)}


def teaching(config: SamplerConfig) -> SamplerConfig:
    """A sampler's settings as a teacher draws: with ddim where ddpm would draw noise on its way."""
    released = config.composition == "release"  # which moves by ddpm alone
    return replace(config, solver="ddim") if config.solver == "ddpm" and not released else config


def shaping(config: SamplerConfig) -> dict[str, Any]:
    """Of a sampler's settings those that a student learns."""
    return {key: value for key, value in asdict(config).items() if key in SHAPING}


def distil(
    pipeline: MPDiffuserPipeline,
    config: SamplerConfig,
    parts: Sequence[Episodes],
    targets: Sequence[np.ndarray],
    fit: Callable[..., Any],
    device: torch.device,
) -> Student:
    """Train a student of the pipeline's plans from the states of episodes.

    Args:
        config: how the teacher draws (see `teaching`).
        parts: training and held-out episodes, `observations` = latents.
        targets: of each, what a planner may be asked for, (M, c); the teacher is asked for what the ranker expects.
        fit: (name, model, data, validation) trains a model, on `device`.

    Raises:
        InputError: for a teacher that draws noise on its way: such plans are no function of where they start.
    """
    pipeline.to("cpu")  # where windows are made
    wishes = [wish(pipeline, part, target, config.target) for part, target in zip(parts, targets)]
    normalizers = pipeline.latents, pipeline.actions, pipeline.condition
    horizon = pipeline.planner.config["horizon"]
    windows = [Windows(part, each, horizon, *normalizers) for part, each in zip(parts, wishes)]
    student = Student(**{key: value for key, value in pipeline.planner.config.items() if not key.startswith("_")})
    student.load_state_dict(pipeline.planner.state_dict())
    student.teacher = pipeline.to(device).sampler(replace(config, engine="torch", warm_start=0))
    if any(move.spread for move in student.teacher.moves) or config.composition == "sequential":
        raise InputError("sampler: a student needs a teacher that draws no noise on its way: solver=ddim or dpmpp_2m")
    return fit("student", student, *windows, teacher=shaping(config) | {"target": config.target})


@torch.inference_mode()
def wish(pipeline: MPDiffuserPipeline, episodes: Episodes, targets: np.ndarray, level: float) -> np.ndarray:
    """What a pipeline on the CPU asks for at each row, (M, c), at the row's own cost_to_go where there are costs."""
    latents = torch.from_numpy(np.array(episodes["observations"], np.float32))
    costs = torch.from_numpy(targets[:, 1]) if targets.shape[1] > 1 else None
    return pipeline.condition.denormalize(pipeline.target(latents, level, costs)).numpy()


def distilled(pipeline: MPDiffuserPipeline, folder: Path) -> MPDiffuserPipeline:
    """The pipeline with the student of its folder in place of both models."""
    parts = dict(pipeline.components) | {"planner": Student.from_pretrained(folder / "student").eval()}
    return MPDiffuserPipeline(**parts | {"dynamics": None}, info=pipeline.config["info"]).to(pipeline.device)


def distilled_config(config: SamplerConfig, info: dict[str, Any]) -> SamplerConfig:
    """A sampler's settings for the student of the pipeline with this info: one level, at the temperature it knows.

    Raises:
        InputError: if the info does not tell that.
    """
    taught = info.get("distilled")
    known = taught.get("temperature") if isinstance(taught, dict) else None
    if isinstance(known, bool) or not isinstance(known, int | float):
        raise InputError(f"the pipeline's info.distilled: must hold the student's temperature, found {taught!r}")
    return replace(config, composition="planner", steps=1, guidance=1.0, warm_start=0, temperature=known)
