"""The pipeline: all models that a controller needs, in one folder with safetensors and JSON."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging

from mpdiffuser.action_scale import ActionMap, ActionScale
from mpdiffuser.budget import Allowance
from mpdiffuser.engines import FASTEST, Prepared, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_manifest
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.networks import Networks
from mpdiffuser.plan import Objective, Plan, candidate_weights, total_reward
from mpdiffuser.plan_graph import MOST_LEVELS
from mpdiffuser.record import Actions, Record
from mpdiffuser.safe_loading import FORMAT_VERSION, check_pipeline
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule


class MPDiffuserPipeline(DiffusionPipeline):
    """Encoder, normalisers, planner, dynamics and forward models, ranker, schedule, and a decoder that shows plans.

    Args:
        encoder: maps observations to latents. It has `history`, `sees_pixels`, `features(observations)` and
            `forward(features, actions)` (see `LatentHistory`). An encoder of pixels computes its features with
            `frame_net`.
        latents, actions: fitted normalisers.
        condition: fitted marginals of the targets.
        planner, dynamics, ranker: the models; None in a folder that has only a baseline. Data without rewards have no
            ranker.
        schedule: the noise schedule of the diffusion models.
        forward: model of one step, for plans that arrive late (`ahead`) and for a changed robot
            (`mpdiffuser.adaptation`); None: there is none.
        decoder: maps latents to frames; None: no decoder.
        sampler_defaults: fields of `SamplerConfig`. A controller without settings uses these.
        info: facts of the training data (task, environment, record, ...); JSON.
        format_version: version of the folder's format. `from_pretrained` raises InputError for another version.
    """

    sampler_class: ClassVar[type[Sampler]] = Sampler
    # a folder with only a baseline has none of these
    _optional_components = ["condition", "planner", "dynamics", "ranker", "forward", "decoder"]  # noqa: RUF012  diffusers adds it to a list

    def __init__(
        self,
        encoder: ModelMixin,
        latents: Normalizer,
        actions: Normalizer,
        condition: Marginals | None,
        planner: Planner | None,
        dynamics: Dynamics | None,
        ranker: Ranker | None,
        schedule: NoiseSchedule,
        forward: ForwardModel | None = None,
        decoder: ModelMixin | None = None,
        sampler_defaults: dict[str, Any] | None = None,
        info: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        super().__init__()
        self.register_modules(
            encoder=encoder,
            latents=latents,
            actions=actions,
            condition=condition,
            planner=planner,
            dynamics=dynamics,
            ranker=ranker,
            schedule=schedule,
            forward=forward,
            decoder=decoder,
        )
        defaults = asdict(SamplerConfig(**sampler_defaults or {}))
        self.register_to_config(sampler_defaults=defaults, info=info or {}, format_version=format_version)

    @cached_property
    def record(self) -> Record | None:
        """What the pipeline was trained on, and the observations that `act` takes; None if the info does not say it."""
        found = self.config["info"].get("record")
        return None if found is None else Record.from_json(found, "the pipeline's info.record")

    @property
    def takes_goals(self) -> bool:
        """Whether the planner was trained with goals."""
        return bool(self.planner is not None and self.planner.config.get("goal_dim"))

    @property
    def stride(self) -> int:
        """Decisions between two rows of a plan."""
        return self.config["info"].get("stride", 1)

    @property
    def action_bounds(self) -> Actions:
        """The bounds of the actions in the data's units; -1 and 1 if the info does not say them."""
        return self.record.actions if self.record else Actions.unit(self.actions.config["dim"])

    @cached_property
    def action_scale(self) -> ActionScale:
        """The map between the data's units of actions and [-1, 1], in which the models compute."""
        return self.action_bounds.scale(self.action_map)

    @cached_property
    def action_map(self) -> ActionMap | None:
        """How a changed robot's actions differ (`mpdiffuser.adaptation`); None: the robot is that of the data."""
        found = self.config["info"].get("adaptation")
        return None if found is None else ActionMap.from_json(found, "the pipeline's info.adaptation")

    @property
    def sampler_defaults(self) -> SamplerConfig:
        """The settings of a controller that gets no other settings."""
        return SamplerConfig(**self.config["sampler_defaults"])

    def sampler_config(self, given: Mapping[str, Any]) -> SamplerConfig:
        """Return the settings of `sampler_defaults`, with those of the section `sampler` that are not null."""
        return replace(self.sampler_defaults, **{key: value for key, value in given.items() if value is not None})

    def safe_action(self, config: SamplerConfig) -> np.ndarray:
        """Return the safe action (m,) in the data's units, within the bounds: that of the settings, or zeros."""
        found = np.array(config.safe_action or [0.0] * self.actions.config["dim"], np.float32)
        return self.action_scale.clip(found)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the components with diffusers, and the manifest that `from_pretrained` checks."""
        kept = {key: value for key, value in self.config.items() if key != "_name_or_path"}  # where it was loaded from
        self._internal_dict = FrozenDict(kept)
        super().save_pretrained(folder, safe_serialization=True, **options)
        write_manifest(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a pipeline from a folder. No code in the folder is executed, so the folder need not be trusted.

        Raises:
            InputError: unless the folder is a complete pipeline folder of this format version (`check_pipeline`).
        """
        check_pipeline(Path(folder))
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # loading takes a third of a second
        try:
            return super().from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options)
        finally:
            if shown:
                logging.enable_progress_bar()

    def sampler(self, config: SamplerConfig) -> Sampler:
        """Return a sampler with these settings. The engine "auto" and the steps None are replaced by values.

        Raises:
            InputError: if the engine is not installed, or the composition needs a dynamics model that is missing.
        """
        self.networks.look()
        steps = config.steps or self.sampler_defaults.levels
        config = replace(config, engine=resolved(config.engine, self.device), steps=steps)
        bounds = [torch.cat(pair) for pair in zip(self.latents.bounds(), self.actions.bounds())]
        planner, dynamics = (self._prepared(name, config) for name in ("planner", "dynamics"))
        return self.sampler_class(planner, dynamics, self.schedule, bounds[0], bounds[1], config, **self.other_models())

    def other_models(self) -> dict[str, Any]:
        """Return further models of the sampler by name. Only a baseline has any."""
        return {}

    def _prepared(self, name: str, config: SamplerConfig) -> Any:
        model = getattr(self, name)
        if model is None:
            return None
        levels = self.schedule.grid(config.steps, config.grid)
        if config.engine == "torch":
            return Prepared(model, levels)
        return Prepared(model, levels, self.networks.compiled(name, config.engine))

    @property
    def sees_pixels(self) -> bool:
        """Whether the encoder takes pixels and the record is known."""
        return self.encoder.sees_pixels and self.record is not None

    @cached_property
    def networks(self) -> Networks:
        """The networks, compiled for engines."""
        return Networks(self)

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the planner's condition (B, c) at decoded latents (B, d).

        The target is the expectile of `level` of the data's returns from each latent, and the cost_to_go if the data
        have costs. The data do not reach one fixed return from most states, so such a target would be outside of the
        planner's training data there. Without a ranker the condition is zeros, the mean rank, as in the training.

        Args:
            latents: (B, d), decoded.
            level: of the expectile, a number or (B,).
            cost_to_go: (B,), if the data have costs.
        """
        if self.ranker is None:
            return latents.new_zeros(len(latents), self.planner.config["condition_dim"])
        target = [self.ranker.expectile(latents, level, cost_to_go)]
        return self.condition.normalize(torch.stack(target if cost_to_go is None else [*target, cost_to_go], -1))

    @torch.inference_mode()
    def ahead(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Predict the latents (B, d) after actions (B, K, m) in the data's units, from decoded latents (B, d)."""
        unit = self.action_scale.to_unit(actions)
        for k in range(actions.shape[1]):
            latents = self.forward(latents, unit[:, k])
        return latents

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> torch.Tensor | None:
        """Return the target cost_to_go (B,) at latents (B, d); None if the data have no costs.

        It is the allowance's cost per step, and at least the lowest cost_to_go of the data. Without an allowance it is
        that lowest value.

        Raises:
            InputError: for an allowance if the data have no costs.
        """
        if self.ranker is None or self.ranker.cost_scale is None:
            if allowance is not None:
                raise InputError("budget: the pipeline's data have no costs, so it cannot predict costs")
            return None
        low, _ = self.ranker.cost_scale.bounds()
        least = self.ranker.cost_scale.denormalize(low).expand(len(latents))
        return least if allowance is None else allowance.rate.maximum(least)

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return scores (B N,) of decoded states (B N, H, d) and actions (B N, H, m) in [-1, 1] (see `Ranker.scores`).

        Without a ranker they are zeros.

        Args:
            states, actions: the rollouts.
            cost_to_go: (B N,), if the data have costs.
        """
        if self.ranker is None:
            return states.new_zeros(len(states))
        return self.ranker.scores(states, actions, cost_to_go, self.stride)

    def within_deadline(
        self, config: SamplerConfig, latents: torch.Tensor, repeats: int = 5, graph: bool = True
    ) -> SamplerConfig:
        """Return `config` with the largest number of levels, 1 to config.steps, that meets config.deadline_ms.

        The method measures the time of plans with one level and with all levels, and interpolates between them.

        Args:
            config: the settings.
            latents: (B, d), a batch of the size that the controller gets.
            repeats: number of plans; the median of their times counts.
            graph: whether the plans will be computed as one graph, where that is possible.
        """
        graph = graph and self.fits_graph(self.sampler(config))

        def milliseconds(levels: int) -> float:
            sampler = self.sampler(replace(config, steps=levels, warm_start=0))
            generators = [torch.Generator().manual_seed(0) for _ in latents]
            goal = latents if self.takes_goals else None
            times = [self(latents, sampler, generators, goal=goal, graph=graph).plan_ms for _ in range(repeats + 1)]
            return float(np.median(times[1:]))

        most = len(self.sampler(config).moves)
        if not config.deadline_ms or most == 1:
            return config
        one, all_levels = milliseconds(1), milliseconds(most)
        per_level = max((all_levels - one) / (most - 1), 1e-3)
        affordable = 1 + math.floor((config.deadline_ms - one) / per_level)
        steps = min(max(affordable, 1), most)
        return replace(config, steps=steps, warm_start=min(config.warm_start, steps))

    def _objective_gradient(self, objective: Objective, scale: float, x: torch.Tensor) -> torch.Tensor:
        """Return the gradient of scale times the summed objective at clean normalised x, (B, H, d + m), like x."""
        d = self.latents.config["dim"]
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            actions = self.action_scale.to_data(self.actions.denormalize(x[..., d:]))
            rewards = total_reward(objective, self.latents.denormalize(x[..., :d]), actions)
            (gradient,) = torch.autograd.grad(scale * rewards[rewards.isfinite()].sum(), x)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    @torch.inference_mode()
    def __call__(
        self,
        latents: torch.Tensor,
        sampler: Sampler,
        noise: Sequence[torch.Generator] | Callable[[], torch.Tensor],
        last: tuple[torch.Tensor, torch.Tensor] | None = None,
        goal: torch.Tensor | None = None,
        committed: torch.Tensor | None = None,
        allowance: Allowance | None = None,
        objective: Objective | None = None,
        graph: bool = True,
    ) -> Plan:
        """Sample N candidate plans for each latent, score them, and weigh them (`candidate_weights`).

        The candidates are pairs with opposite noise (antithetic variates: Hammersley and Morton 1956). Most of the
        noise then cancels in their mean. Where it can, an engine computes the plan of one latent as one graph
        (`mpdiffuser.plan_graph`).

        Args:
            latents: z_0, (B, d), decoded.
            sampler: result of `sampler(config)`; one sampler can serve many calls.
            noise: a generator for each row, so that the plan of a row does not depend on the batch; or a function that
                returns new standard normal numbers (B, *noise_shape) in each call.
            last: the shifted last plan for a warm start: latents (B, H, d) and actions (B, H, m) in the data's units.
            goal: a latent to reach, (B, d). A planner that was trained with goals (`takes_goals`) is told it. With
                any other planner it is the last latent of the plans. None: plans have no goal.
            committed: the first K actions of the plans, (B, K, m) in the data's units; None: they are free.
            allowance: the remaining budget of each row. Only candidates within it have weight; if no candidate is,
                the cheapest has all the weight.
            objective: ranks the candidates instead of the ranker. The best score has all the weight.
            graph: whether an engine may compute the plan of one latent as one graph.

        Raises:
            InputError: for an allowance if the data have no costs, an objective that returns a wrong shape, or no goal
                for a planner that was trained with goals.
        """
        began = time.perf_counter()
        config, n = sampler.config, sampler.config.candidates
        plain = graph and last is None and committed is None and allowance is None and objective is None
        if plain and not callable(noise) and len(latents) == 1 and self.fits_graph(sampler):
            engine = self.networks.plan_engine(config, goal is not None)
            return engine(latents, self._drawn(noise, config, engine.draws), goal)

        def opposite() -> torch.Tensor:
            halves = noise() if callable(noise) else self._drawn(noise, config)[:, 0].to(latents.device)
            return torch.cat([halves, -halves], 1)[:, :n].flatten(0, 1)

        def repeated(known: torch.Tensor | None) -> torch.Tensor | None:
            return None if known is None else known.repeat_interleave(n, 0)

        normal, normal_actions = self.latents.normalize, lambda x: self.actions.normalize(self.action_scale.to_unit(x))
        warm = last if config.warm_start else None
        start = repeated(None if warm is None else torch.cat([normal(warm[0]), normal_actions(warm[1])], -1))
        cost_to_go = repeated(self.affordable(latents, allowance))
        goal = repeated(None if goal is None else normal(goal))
        condition = self._condition(latents.repeat_interleave(n, 0), config, cost_to_go, goal)
        gradient = None
        if objective is not None and config.objective_scale:
            gradient = partial(self._objective_gradient, objective, config.objective_scale)
        committed = repeated(None if committed is None else normal_actions(committed))
        held_goal = None if self.takes_goals else goal
        present = normal(latents).repeat_interleave(n, 0)
        x = sampler(present, condition, opposite, start, held_goal, committed, gradient)
        plan = self._ranked(x, n, cost_to_go, allowance, objective, config.rank_temperature)
        plan.plan_ms = 1e3 * (time.perf_counter() - began)
        return plan

    def noise_shape(self, config: SamplerConfig) -> tuple[int, int, int]:
        """Return (K, H, d + m), the shape of one draw of noise for a latent: of half of its N candidates."""
        c = self.planner.config
        return (config.candidates + 1) // 2, c["horizon"], c["latent_dim"] + c["action_dim"]

    def fits_graph(self, sampler: Sampler) -> bool:
        """Whether an engine can compute the plan of one latent as one graph, and should."""
        config, pairs = sampler.config, ((sampler.planner, self.planner), (sampler.dynamics, self.dynamics))
        fresh = all(one is None or one.model is model for one, model in pairs)  # no model was replaced meanwhile
        fits = config.engine in FASTEST and not config.warm_start and len(sampler.moves) <= MOST_LEVELS
        return fits and fresh and next(self.planner.parameters()).device.type == "cpu"

    def _drawn(self, generators: Sequence[torch.Generator], config: SamplerConfig, draws: int = 1) -> torch.Tensor:
        """Draw noise (B, draws, K, H, d + m), each row by its own generator."""
        shape = self.noise_shape(config)
        rows = [[torch.randn(shape, generator=each) for _ in range(draws)] for each in generators]
        return torch.stack([torch.stack(row) for row in rows])

    def _condition(
        self,
        latents: torch.Tensor,
        config: SamplerConfig,
        cost_to_go: torch.Tensor | None,
        goal: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the planner's condition (B N, c) at latents (B N, d) (see `Planner.condition`).

        Args:
            latents: decoded.
            config: has the levels of the N targets.
            cost_to_go: (B N,), if the data have costs.
            goal: (B N, d), normalised.
        """
        n = config.candidates
        places = torch.linspace(-1, 1, n, device=latents.device) if n > 1 else latents.new_zeros(1)
        levels = config.target + config.target_spread * places
        targets = self.target(latents, levels.clamp(0, 1).repeat(len(latents) // n), cost_to_go)
        if self.takes_goals and goal is None:
            raise InputError("goal: the planner was trained with goals; give one")
        return self.planner.condition(targets, goal if self.takes_goals else None)

    def _ranked(
        self,
        x: torch.Tensor,
        n: int,
        cost_to_go: torch.Tensor | None,
        allowance: Allowance | None,
        objective: Objective | None,
        rank_temperature: float,
    ) -> Plan:
        """Decode x (B N, H, d + m), and score and weigh the candidates at cost_to_go (B N,)."""
        d = self.latents.config["dim"]
        states = self.latents.denormalize(x[..., :d])
        unit_actions = self.actions.denormalize(x[..., d:]).clamp(-1, 1)
        actions = self.action_scale.to_data(unit_actions)
        if objective is None:
            scores = self.scores(states, unit_actions, cost_to_go)
        else:
            scores, rank_temperature = total_reward(objective, states, actions), 0.0
        costs = limits = None
        if allowance is not None:
            left_steps, rate = (part.repeat_interleave(n) for part in (allowance.steps, allowance.rate))
            costs = self.ranker.expected_cost(states, unit_actions, left_steps, rate).unflatten(0, (-1, n))
            limits = allowance.cost
        states, actions, scores = (part.unflatten(0, (-1, n)) for part in (states, actions, scores))
        weights = candidate_weights(scores, rank_temperature, costs, limits)
        return Plan(states, actions, scores, weights, 0.0, costs)
