"""What the rivals share with us: the pipeline, and so the controller, the solvers, warm starts, probes and latency."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.budget import Allowance
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import ActionPlanner, CleanDynamics, Planner, StatePlanner
from mpdiffuser.models.inverse import InverseDynamics
from mpdiffuser.models.normalizer import Marginals
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.models.return_model import ReturnModel
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import Sampler, SamplerConfig

# every model of the rivals: its name, which is its folder in the pipeline's, and its class; see rivals/training.py
PARTS: dict[str, type[ModelMixin]] = {
    "trajectory_planner": Planner,
    "state_planner": StatePlanner,
    "action_planner": ActionPlanner,
    "clean_dynamics": CleanDynamics,
    "inverse": InverseDynamics,
    "return_model": ReturnModel,
    "critic": Ranker,
    "logged_returns": Marginals,
}


class Rival(MPDiffuserPipeline):
    """A pipeline whose planner, dynamics model and ranker are another method's. A subclass is such a method.

    roles: what serves as planner, dynamics, ranker and condition, or under a name of the method's own -> its name in
    PARTS. fixed: settings of the sampler that belong to the method. foresees: whether its plans hold states.
    """

    roles: ClassVar[dict[str, str]] = {}
    fixed: ClassVar[dict[str, Any]] = {"composition": "planner", "guidance": 0.0}
    foresees: ClassVar[bool] = True

    @classmethod
    def load(cls, pipeline: MPDiffuserPipeline, folder: Path) -> Self:
        """The method, with what it shares with our pipeline taken from there and its own models from the folder."""
        models = {role: PARTS[part].from_pretrained(folder / part).eval() for role, part in cls.roles.items()}
        slots = {role: models.pop(role, None) for role in ("condition", "planner", "dynamics", "ranker")}
        common = {name: getattr(pipeline, name) for name in ("encoder", "latents", "actions", "schedule")}
        rival = cls(**common, **slots, info=pipeline.config["info"])
        rival.own = {role: model.to(pipeline.device) for role, model in models.items()}
        return rival.to(pipeline.device)

    own: dict[str, Any]

    def sampler(self, config: SamplerConfig) -> Sampler:
        sampler = super().sampler(config)
        for role, model in self.own.items():
            setattr(sampler, role, model)
        return sampler

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> None:
        """None: their papers know no costs.

        Raises:
            InputError: if there is a budget to keep to.
        """
        if allowance is not None:
            raise InputError(f"budget: {type(self).__name__} keeps to none")

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """None: the condition (B, c) that an unguided planner does not look at."""
        return latents.new_zeros(len(latents), self.planner.config["condition_dim"])

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The ranker's; a method without one has no preference."""
        return states.new_zeros(len(states)) if self.ranker is None else super().scores(states, actions, cost_to_go)
