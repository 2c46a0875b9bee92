"""Base classes of methods. A method defines its models, its sampler settings and its policy.

A method is one class in one file of this folder. Configuration, help, evaluation and report derive from the class.

    Method      any method
    Planning    samples plans with the pipeline's models and the section `sampler`
    Baseline    samples plans with its own models and the section `baselines.NAME`
    Recipe      how to build and train one model
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
from mpdiffuser.windows import Mixture, NextSteps, Windows, occupancy, step_rows, to_go


@dataclass
class TrainingData:
    """Latent episodes and the data that all recipes compute from them. Pairs are (training, held-out).

    Args:
        settings: the options that a recipe may use (see `Recipe.settings`).
        parts: training and held-out episodes; their `observations` are latents.
        latents, actions: normalisers, fitted to the training episodes.
        schedule: noise schedule of all diffusion models.
        dynamics_parts: further episodes, for dynamics models alone, with states in the range of `parts`; None: there
            are none.
        planner_share: with them, the share of a dynamics model's windows that are of `parts`.
        trained: name -> trained model.
        shared: name -> result of a recipe that later recipes use.
        info: entries that recipes add to the pipeline's info.

    Attributes:
        discount: g of returns and costs: the option, or if that is None 1 - 3 / T for T decisions in the longest
            training episode. A value then counts the rewards of about T / 3 decisions.
        costs: cost_to_go (M,) of each part; None if the data have no costs.
        logged_targets: the logged targets (M, c) of each part.
        logged_condition: their marginals.
    """

    settings: Mapping[str, Any]
    parts: tuple[Episodes, Episodes]
    latents: Normalizer
    actions: Normalizer
    schedule: NoiseSchedule
    dynamics_parts: tuple[Episodes, Episodes] | None = None
    planner_share: float = 1.0
    trained: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        longest = int(np.diff(self.parts[0].offsets).max()) - 1
        given = self.settings["discount"]
        self.discount = max(0.0, 1 - 3 / longest) if given is None else given
        self.costs = [to_go(part["costs"], part, self.discount) if "costs" in part else None for part in self.parts]
        returns = [to_go(part["rewards"], part, self.discount) for part in self.parts]
        self.logged_targets = [joined_targets(*pair) for pair in zip(returns, self.costs)]
        self.logged_condition = self.condition_of(self.logged_targets)

    def limited_to(self, settings: Mapping[str, Any]) -> "TrainingData":
        """Return the same data for a recipe that may use only `settings`."""
        limited = copy(self)
        limited.settings = settings
        return limited

    @property
    def dims(self) -> dict[str, int]:
        """The arguments `latent_dim` and `action_dim` of the models' constructors."""
        return {"latent_dim": self.latents.config["dim"], "action_dim": self.actions.config["dim"]}

    @property
    def targets(self) -> Sequence[np.ndarray]:
        """The planner's targets (M, c) of each part: of the ranker's last round; without a ranker the logged ones.

        With goals they are 0, since acting has no target beside the goal (`MPDiffuserPipeline.target`).
        """
        if self.settings.get("goals"):
            return [np.zeros_like(targets) for targets in self.logged_targets]
        return self.shared.get("targets", self.logged_targets)

    @property
    def condition(self) -> Marginals:
        """The marginals of `targets`."""
        if self.settings.get("goals"):
            return self.condition_of(self.targets)
        return self.shared.get("condition", self.logged_condition)

    @property
    def frequencies(self) -> list[np.ndarray]:
        """Relative frequencies (M,) of the rows of each part (`occupancy`)."""
        return [occupancy(part, self.discount, self.settings["occupancy"]) for part in self.parts]

    @property
    def target_dim(self) -> int:
        """Number of targets: 1, or 2 if the data have costs."""
        return self.logged_targets[0].shape[1]

    def condition_of(self, targets: Sequence[np.ndarray]) -> Marginals:
        """Fit marginals to the training part of targets (M, c)."""
        return Marginals(targets[0].shape[1]).fit(targets[0][step_rows(self.parts[0])])

    def windows(
        self,
        part: int,
        targets: np.ndarray,
        condition: Marginals,
        weights: np.ndarray | None = None,
        goals: bool = False,
    ) -> Windows:
        """Return the windows of one part with targets (M, c) and weights (M,), and with goals (see `Windows`)."""
        distance = 1 / (1 - self.discount) if goals else None
        shape = self.settings["horizon"], self.latents, self.actions, condition
        return Windows(self.parts[part], targets, *shape, weights, distance, self.settings["stride"])

    def dynamics_windows(self, part: int, own: Windows) -> Windows | Mixture:
        """Return the windows of one part for a dynamics model: `own`, mixed with those of `dynamics_parts`.

        The normalisers are those of `parts`.
        """
        if self.dynamics_parts is None:
            return own
        episodes, share = self.dynamics_parts[part], self.planner_share
        unused = np.zeros((len(episodes["actions"]), self.target_dim), np.float32)
        shape = self.settings["horizon"], self.latents, self.actions, self.logged_condition
        other = Windows(episodes, unused, *shape, stride=self.settings["stride"])
        return Mixture([own, other], [share, 1 - share])

    def dynamics_steps(self, part: int) -> NextSteps | Mixture:
        """Return the steps of one part for a model of the dynamics, mixed with those of `dynamics_parts`."""

        def steps(episodes: Episodes) -> NextSteps:
            return NextSteps(episodes, np.zeros(len(episodes["rewards"]), np.float32))

        own = steps(self.parts[part])
        if self.dynamics_parts is None:
            return own
        return Mixture([own, steps(self.dynamics_parts[part])], [self.planner_share, 1 - self.planner_share])

    def logged_windows(self, part: int) -> Windows:
        """Return the windows of one part with equal weights and the logged return_to_go and cost_to_go as targets."""
        return self.windows(part, self.logged_targets[part], self.logged_condition)


def joined_targets(returns: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """Join return_to_go (M,) and, if the data have costs, cost_to_go (M,) to the planner's targets (M, c)."""
    return np.stack([returns] if costs is None else [returns, costs], -1)


Fit = Callable[..., Any]  # (name, model, training data, held-out data) -> the trained model


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained.

    Args:
        name: name of the model and of its folder in the run and in the pipeline folder.
        kind: class of the model.
        build: returns the untrained model.
        train: defaults of the section `train.NAME` (`TrainConfig`); None: the model needs no training after `build`.
        examples: returns the training data (part 0) or the held-out data (part 1).
        after: names of the models that must be trained before this one.
        sections: names of the configuration's sections that the recipe uses.
        section: name of the section `train.SECTION`; None: the model's name.
        options: returns further settings from the whole configuration, for a model that uses only a part of a section.
        own_seed: whether the model's initial weights depend only on the seed, not on models built before.
        dynamics_data: whether the model is trained on `TrainingData.dynamics_parts` too.
        acts: whether the method needs the model to act.
        fit_with: replaces the standard training; called with (fit, model, data).
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
    dynamics_data: bool = False
    acts: bool = True
    fit_with: Callable[[Fit, Any, TrainingData], Any] | None = None

    def settings(self, cfg: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options that the model can depend on: the common options and those of its sections.

        The recipe's functions get only these options, so they identify the model (see `mpdiffuser.training`).

        Args:
            cfg: the whole configuration.
            common: options of all models (`mpdiffuser.training.common_options`).
        """
        more = self.options(cfg) if self.options else {}
        return {**common, **{name: self._section(cfg, name) for name in self.sections}, **more}

    def _section(self, cfg: Mapping[str, Any], name: str) -> Any:
        for part in name.split("."):
            cfg = cfg[part]
        return cfg

    def fit(self, fit: Fit, model: Any, data: TrainingData) -> Any:
        """Train a model from `build` and return it."""
        if self.train is None:
            return model
        if self.fit_with is not None:
            return self.fit_with(fit, model, data)
        return fit(self.name, model, *(self.examples(data, part) for part in (0, 1)))


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
