"""How one model is built and trained (`Recipe`), and the data that all recipes share (`TrainingData`)."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpdiffuser.episodes import Episodes
from mpdiffuser.models.normalizer import Marginals, Normalizer
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
