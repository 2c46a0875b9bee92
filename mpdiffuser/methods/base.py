"""Base classes of methods. A method defines its models, its sampler settings and its policy.

A method is one class in one file of this folder. Configuration, help, evaluation and report derive from the class.

    Method      any method
    Planning    samples plans with the pipeline's models and the section `sampler`
    Baseline    samples plans with its own models and the section `baselines.NAME`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.controller import Controller, Policy
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.recipe import Recipe
from mpdiffuser.safe_loading import load_model
from mpdiffuser.sampler import SamplerConfig


@dataclass(frozen=True)
class Setup:
    """The arguments of `Method.policy`.

    Args:
        pipeline: the loaded pipeline.
        folder: its folder, which also has the models of other methods.
        sampler: settings of the section `sampler`.
        section: settings of the section `baselines.NAME`.
        limit: limit on the cost of an episode; None: no limit.
        safety_probability: target probability that an episode stays within the limit.
        expert: the data's expert, states (B, o) -> actions (B, m); None: the data have no expert.
        action_space: the environment's Box; None: not known.
    """

    pipeline: MPDiffuserPipeline
    folder: Path
    sampler: SamplerConfig
    section: Mapping[str, Any]
    limit: float | None = None
    safety_probability: float | None = None
    expert: Callable[[np.ndarray], np.ndarray] | None = None
    action_space: Any = None

    def model(self, name: str, kind: type[Any]) -> Any:
        """Load a model of the folder, on the pipeline's device.

        Args:
            name: name of the model.
            kind: class of the model.

        Raises:
            InputError: unless the folder has the model and its dimensions are those of the pipeline.
        """
        dims = {"latent_dim": self.pipeline.latents.config["dim"], "action_dim": self.pipeline.actions.config["dim"]}
        if self.pipeline.planner is not None:  # a run has one horizon and one set of targets
            dims |= {key: self.pipeline.planner.config[key] for key in ("horizon", "condition_dim")}
        return load_model(self.folder / name, kind, dims).to(self.pipeline.device)


class Method:
    """A method. A subclass sets the attributes and defines `policy`.

    Attributes:
        name: name in the configuration, in metrics and in folders.
        label: name in tables and reports.
        color: hex colours of the label, on light and on dark pages.
        summary: one sentence, for help and glossary.
        order: position in tables, ascending.
        models: recipes of all models that the method needs.
        settings: defaults of the section `baselines.NAME`; empty: the method has no section.
        sees_states: whether the policy gets true states, also if other methods get pixels.
        plans_states: whether plans have states, which evaluation compares with the simulator.
        takes_limits: whether the policy supports a limit on costs.
        needs_expert: whether the method needs the data's expert.
        needs_rewards: whether the method can only be trained on data with rewards.
        evaluated_with: other methods that `method=NAME` also trains and evaluates.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    color: ClassVar[tuple[str, str]]
    summary: ClassVar[str]
    order: ClassVar[int] = 50
    models: ClassVar[tuple[Recipe, ...]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    sees_states: ClassVar[bool] = False
    plans_states: ClassVar[bool] = False
    takes_limits: ClassVar[bool] = False
    needs_expert: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = False
    evaluated_with: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recipes(cls, limits: Sequence[float] = ()) -> tuple[Recipe, ...]:
        """Return the recipes of the method's models, for these cost limits of an episode."""
        return cls.models

    @classmethod
    def check_settings(cls, section: Mapping[str, Any]) -> None:
        """Raise InputError for a value of `baselines.NAME` that is not allowed; called before any training."""

    @classmethod
    def sampler_config(cls, section: Mapping[str, Any]) -> SamplerConfig | None:
        """Return the sampler settings from the section `baselines.NAME`; None if the section has no such settings.

        Raises:
            InputError: for a value that is not allowed, with the option's full name.
        """
        return None

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return a new policy of the method."""
        raise AssertionError(f"{cls.__name__} defines no policy")


class Planning(Method):
    """A method that samples plans with the pipeline's models."""

    plans_states = True
    takes_limits = True

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        """Return the pipeline and the sampler settings of the method."""
        return setup.pipeline, setup.sampler

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return a controller, with a cost budget if the setup has a limit."""
        info = setup.pipeline.config["info"]
        budget = None
        if setup.limit is not None:
            steps, margins = info.get("episode_steps", 0), info.get("cost_margins")
            budget = Budget(setup.limit, steps, margins, setup.safety_probability or None)
        return Controller(*cls.prepare(setup), budget)


class Baseline(Method, MPDiffuserPipeline):
    """A pipeline with the planner, dynamics model and ranker of another method.

    It shares the encoder, normalisers, schedule, solvers, controller and evaluation with MPDiffuser.

    Attributes:
        roles: role -> name of a recipe. The roles planner, dynamics, ranker and condition are components of the
            pipeline. Any other role is a further model of the sampler.
        fixed: sampler settings that the method defines and the user cannot change.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {"composition": "planner", "guidance": 0.0}
    plans_states = True

    @classmethod
    def sampler_config(cls, section: Mapping[str, Any]) -> SamplerConfig:
        """Return the settings of the section `baselines.NAME` with the fixed ones.

        Raises:
            InputError: for a value that is not allowed, with the option's full name.
        """
        try:
            # the papers choose the candidate with the best score
            return SamplerConfig(**{**section, "rank_temperature": 0.0, **cls.fixed})
        except InputError as error:
            raise InputError(str(error).replace("sampler.", f"baselines.{cls.name}.")) from error

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return a controller with the method's models."""
        return Controller(cls.load(setup), cls.sampler_config(setup.section))

    @classmethod
    def load(cls, setup: Setup) -> Self:
        """Load the method's models from the folder, and join them with the shared components of the pipeline."""
        return cls.join(setup.pipeline, setup.model)

    @classmethod
    def join(cls, pipeline: MPDiffuserPipeline, model: Callable[[str, type[Any]], Any]) -> Self:
        """Join the method's models with the shared components of a pipeline.

        Args:
            pipeline: the pipeline. Its info may have the number of levels that was chosen for this method.
            model: returns a model, given its name and its class.
        """
        kinds = {recipe.name: recipe.kind for recipe in cls.models}
        models = {role: model(name, kinds[name]) for role, name in cls.roles.items()}
        slots = {role: models.pop(role, None) for role in ("condition", "planner", "dynamics", "ranker")}
        shared = {name: getattr(pipeline, name) for name in ("encoder", "latents", "actions", "schedule")}
        info = pipeline.config["info"]
        chosen = info.get("levels", {}).get(cls.name, {}).get("levels")
        baseline = cls(**shared, **slots, sampler_defaults={"steps": chosen}, info=info)
        baseline.own_models = models
        return baseline.to(pipeline.device)

    own_models: dict[str, Any]

    def other_models(self) -> dict[str, Any]:
        """Return the further models of the sampler, by name."""
        return self.own_models

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> None:
        """Return None, since the papers of these methods have no costs.

        Raises:
            InputError: for an allowance.
        """
        if allowance is not None:
            raise InputError(f"budget: {self.label} does not support a cost limit")

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return zeros (B, c), since an unguided planner ignores the condition."""
        return latents.new_zeros(len(latents), self.planner.config["condition_dim"])


def sampler_section(**settings: Any) -> dict[str, Any]:
    """Return the sampler settings of a baseline: `settings`, and common defaults for all other options."""
    common = {
        "steps": None,  # chosen at the end of training
        "grid": "logsnr",
        "solver": "dpmpp_2m",
        "temperature": 1.0,
        "candidates": 1,
        "warm_start": 0,
        "deadline_ms": 0.0,
        "engine": "auto",
        "chunk": 1,
    }
    return common | settings
