"""Diffusion policy (Chi et al. 2023): a diffusion model of the action sequence, given the present state."""

import torch

from mpdiffuser.methods.base import Baseline, sampler_section
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.recipe import Recipe, TrainingData
from mpdiffuser.sampler import Sampler


class ActionPlanner(Planner):
    """A planner that samples only actions. Arguments and errors as `Planner`."""

    @staticmethod
    def columns(latent_dim: int) -> slice:
        """Return the columns of the actions."""
        return slice(latent_dim, None)


class ActionSampler(Sampler):
    """Samples actions. The present state replaces all planned states."""

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        """Set all states of x (B, H, d + m) to the present state."""
        d = self.planner.config["latent_dim"]
        return torch.cat([x[:, :1, :d].expand(-1, x.shape[1], -1), x[..., d:]], -1)


# the settings in the papers (Janner et al. 2022, Ajay et al. 2023, Chi et al. 2023)
PUBLISHED = {"dropout": 0.25, "first_action_weight": 10.0, "level_draws": 1, "bounded": False}


def planner_arguments(data: TrainingData, **changes: object) -> dict:
    """Return the arguments of a baseline's planner: MPDiffuser's sizes, the papers' settings, and these changes."""
    sizes = {**data.settings["planner"], **PUBLISHED, **changes}
    return {**data.dims, "horizon": data.settings["horizon"], "condition_dim": data.target_dim, **sizes}


ACTION_PLANNER = Recipe(
    "action_planner",
    ActionPlanner,
    lambda data: ActionPlanner(**planner_arguments(data, dropout=1.0, first_action_weight=1.0)),
    {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3, "keep": "last"},
    sections=("planner",),
)


class DiffusionPolicy(Baseline):
    """Imitates the action sequences in the data."""

    name = "diffusion_policy"
    label = "diffusion policy"
    color = ("#b07a1e", "#d9b061")
    summary = (
        "A diffusion model of the actions alone, given the present state; several actions of each plan are executed."
    )
    order = 20
    models = (ACTION_PLANNER,)
    roles = {"planner": "action_planner"}  # noqa: RUF012
    settings = sampler_section(chunk=8)
    sampler_class = ActionSampler
    plans_states = False
