"""What a method is: the models it trains, the settings it draws plans with, and the policy that acts.

A method is one class in one file of this folder. Configuration, help, evaluation and report derive from the class.

    Method      any method
    Planning    a method that draws plans with the pipeline's own models and the section `sampler`
    Baseline    a method that draws plans with models of its own and the section `baselines.NAME`
    Recipe      how one model is built, what it is trained on, and for how long
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.controller import Controller, Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.safe_loading import load_model
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.windows import Windows, step_rows, to_go


@dataclass
class TrainingData:
    """Latent episodes and what all recipes compute from them. Pairs are (training, held-out).

    Args:
        settings: the options that a recipe may use (see `Recipe.settings`).
        parts: episodes with `observations` = latents.
        latents, actions: normalisers, fitted to the training episodes.
        schedule: noise schedule of all diffusion models.
        trained: models that are trained already, by name.
        shared: results that a recipe leaves for later recipes, by name.
        info: facts that recipes add to the pipeline's info.
    """

    settings: Mapping[str, Any]
    parts: tuple[Episodes, Episodes]
    latents: Normalizer
    actions: Normalizer
    schedule: NoiseSchedule
    trained: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        discount = self.settings["discount"]
        self.costs = [to_go(part["costs"], part, discount) if "costs" in part else None for part in self.parts]
        returns = [to_go(part["rewards"], part, discount) for part in self.parts]
        self.logged_targets = [joined_targets(*pair) for pair in zip(returns, self.costs)]
        self.logged_condition = self.condition_of(self.logged_targets)

    def limited_to(self, settings: Mapping[str, Any]) -> "TrainingData":
        """The same data for a recipe that may use `settings` alone."""
        limited = copy(self)
        limited.settings = settings
        return limited

    @property
    def dims(self) -> dict[str, int]:
        """latent_dim and action_dim, as the models' constructors take them."""
        return {"latent_dim": self.latents.config["dim"], "action_dim": self.actions.config["dim"]}

    @property
    def target_dim(self) -> int:
        """Number of targets: 1, or 2 where the data have costs."""
        return self.logged_targets[0].shape[1]

    def condition_of(self, targets: Sequence[np.ndarray]) -> Marginals:
        """Marginals fitted to the training part of targets (M, c)."""
        return Marginals(targets[0].shape[1]).fit(targets[0][step_rows(self.parts[0])])

    def windows(
        self, part: int, targets: np.ndarray, condition: Marginals, weights: np.ndarray | None = None
    ) -> Windows:
        """Windows of one part with targets (M, c), seen in proportion to weights (M,)."""
        horizon = self.settings["horizon"]
        return Windows(self.parts[part], targets, horizon, self.latents, self.actions, condition, weights)

    def logged_windows(self, part: int) -> Windows:
        """Windows of one part, all alike, with the logged return_to_go and cost_to_go as targets."""
        return self.windows(part, self.logged_targets[part], self.logged_condition)


def joined_targets(returns: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """Targets (M, c) of the planner: return_to_go (M,), and where there are costs cost_to_go (M,)."""
    return np.stack([returns] if costs is None else [returns, costs], -1)


Fit = Callable[..., Any]  # (name, model, training data, held-out data) -> the trained model


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained.

    Args:
        name: of the model: its folder in the run and in the pipeline folder.
        kind: its class.
        build: makes the untrained model.
        train: defaults of the section `train.NAME` (`TrainConfig`); None: the model is complete when it is built.
        examples: training data of part 0 and held-out data of part 1.
        after: names of the models that must be trained before.
        sections: names of the configuration's sections that the recipe uses.
        section: name of the section `train.SECTION`; None: the model's name.
        options: gives further settings from the whole configuration, where a section holds more than the model uses.
        own_seed: whether the model's first weights depend on the seed alone, not on the models built before.
        fit_with: replaces the plain training; called with (fit, model, data).
    """

    name: str
    kind: type[Any]
    build: Callable[[TrainingData], Any]
    train: Mapping[str, Any] | None
    examples: Callable[[TrainingData, int], Any] = TrainingData.logged_windows
    after: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    section: str | None = None
    options: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    own_seed: bool = True
    fit_with: Callable[[Fit, Any, TrainingData], Any] | None = None

    def settings(self, cfg: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
        """All options that the model can depend on: the common ones and those of its sections.

        The recipe's functions see no other options, so these identify the model (see `mpdiffuser.training`).
        """
        more = self.options(cfg) if self.options else {}
        return {**common, **{name: self._section(cfg, name) for name in self.sections}, **more}

    def _section(self, cfg: Mapping[str, Any], name: str) -> Any:
        for part in name.split("."):
            cfg = cfg[part]
        return cfg

    def fit(self, fit: Fit, model: Any, data: TrainingData) -> Any:
        """Train the model that `build` made."""
        if self.train is None:
            return model
        if self.fit_with is not None:
            return self.fit_with(fit, model, data)
        return fit(self.name, model, *(self.examples(data, part) for part in (0, 1)))


@dataclass(frozen=True)
class Setup:
    """What a method's policy is made from.

    Args:
        pipeline: loaded; folder: where it lies, with the other methods' models.
        sampler: settings of the section `sampler`; section: of `baselines.NAME`.
        limit: on an episode's cost; None: none. safety_probability: of an episode within it.
        expert: the data's expert, states (B, o) -> actions (B, m); None: there is none.
    """

    pipeline: MPDiffuserPipeline
    folder: Path
    sampler: SamplerConfig
    section: Mapping[str, Any]
    limit: float | None = None
    safety_probability: float | None = None
    expert: Callable[[np.ndarray], np.ndarray] | None = None

    def model(self, name: str, kind: type[Any]) -> Any:
        """A model of the folder, on the pipeline's device.

        Raises:
            InputError: unless the folder holds it and it fits the pipeline.
        """
        dims = {"latent_dim": self.pipeline.latents.config["dim"], "action_dim": self.pipeline.actions.config["dim"]}
        return load_model(self.folder / name, kind, dims).to(self.pipeline.device)


class Method:
    """A method. A subclass sets the attributes and defines `policy`.

    Attributes:
        name: in the configuration, metrics and folders.
        label: in tables and reports. color: of the label, in light and in dark pages.
        summary: one sentence, for help and glossary.
        order: place in tables, small first.
        models: recipes of all models that must be trained.
        settings: defaults of the section `baselines.NAME`, where the method has one.
        sees_states: whether it observes true states, also where others observe pixels.
        plans_states: whether its plans hold states, which evaluation compares with the simulator.
        takes_limits: whether it can be given a limit on costs.
        needs_expert: whether it exists only where the data's expert does.
        evaluated_with: other methods that `method=NAME` trains and evaluates too; their folder has no suffix.
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
    evaluated_with: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recipes(cls, limits: Sequence[float] = ()) -> tuple[Recipe, ...]:
        """Recipes of the method's models, for data whose episodes have these cost limits."""
        return cls.models

    @classmethod
    def sampler_config(cls, section: Mapping[str, Any]) -> SamplerConfig | None:
        """How the method draws plans with its section `baselines.NAME`; None if that section says nothing of it.

        Raises:
            InputError: for a value that is not allowed, with the option's full name.
        """
        return None

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """The policy that acts."""
        raise AssertionError(f"{cls.__name__} defines no policy")


class Planning(Method):
    """Draws plans with the pipeline's own models."""

    plans_states = True
    takes_limits = True

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        """The pipeline and the settings to draw with."""
        return setup.pipeline, setup.sampler

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        info = setup.pipeline.config["info"]
        budget = None
        if setup.limit is not None:
            steps, margins = info.get("episode_steps", 0), info.get("cost_margins")
            budget = Budget(setup.limit, steps, margins, setup.safety_probability or None)
        return Controller(*cls.prepare(setup), budget)


class Baseline(Method, MPDiffuserPipeline):
    """A pipeline whose planner, dynamics model and ranker are another method's.

    It shares the encoder, normalisers, schedule, solvers, controller and evaluation with MPDiffuser.

    Attributes:
        roles: what serves as planner, dynamics, ranker and condition -> a recipe's name. A role of any other name is a
            further model of the sampler.
        fixed: settings of the sampler that belong to the method.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {"composition": "planner", "guidance": 0.0}
    plans_states = True

    @classmethod
    def sampler_config(cls, section: Mapping[str, Any]) -> SamplerConfig:
        try:
            # the papers follow the candidate of the best score
            return SamplerConfig(**{**section, "rank_temperature": 0.0, **cls.fixed})
        except InputError as error:
            raise InputError(str(error).replace("sampler.", f"baselines.{cls.name}.")) from error

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        return Controller(cls.load(setup), cls.sampler_config(setup.section))

    @classmethod
    def load(cls, setup: Setup) -> Self:
        """The method, with its own models from the folder and the shared parts of the pipeline."""
        kinds = {recipe.name: recipe.kind for recipe in cls.models}
        models = {role: setup.model(name, kinds[name]) for role, name in cls.roles.items()}
        slots = {role: models.pop(role, None) for role in ("condition", "planner", "dynamics", "ranker")}
        shared = {name: getattr(setup.pipeline, name) for name in ("encoder", "latents", "actions", "schedule")}
        baseline = cls(**shared, **slots, info=setup.pipeline.config["info"])
        baseline.own_models = models
        return baseline.to(setup.pipeline.device)

    own_models: dict[str, Any]

    def other_models(self) -> dict[str, Any]:
        """Further models that the sampler draws with."""
        return self.own_models

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> None:
        """None: the papers of these methods have no costs.

        Raises:
            InputError: if there is a budget.
        """
        if allowance is not None:
            raise InputError(f"budget: {self.label} keeps to none")

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Zeros (B, c): an unguided planner ignores the condition."""
        return latents.new_zeros(len(latents), self.planner.config["condition_dim"])

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The ranker's scores (B N,); zeros for a method without a ranker."""
        return states.new_zeros(len(states)) if self.ranker is None else super().scores(states, actions, cost_to_go)


def drawing(**settings: Any) -> dict[str, Any]:
    """Sampler settings of a baseline: these, and common defaults for the rest."""
    common = {
        "steps": 8,
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
