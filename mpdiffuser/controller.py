"""Policies: they map observations to actions, for a batch of environments that step together."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.action_scale import ActionScale
from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Objective, Plan
from mpdiffuser.record import PICTURE, Record, read_observations
from mpdiffuser.sampler import SamplerConfig

Observations = np.ndarray | Mapping[str, np.ndarray]


class Policy(ABC):
    """Base class of all policies; evaluation uses only its methods and attributes.

    Attributes:
        plan: the current plan; None for a policy that does not plan.
        planned_now: whether the last `act` sampled a new plan.
    """

    plan: Plan | None = None
    planned_now: bool = False

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes, one for each seed. The policy keeps no state of the last episodes."""

    @abstractmethod
    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, ...) -> actions (B, m) in the data's units.

        Several observations are a dict name -> (B, ...). Where active (B,) is false, the episode has ended.
        """

    def record_costs(self, costs: np.ndarray) -> None:  # noqa: B027  most methods ignore costs
        """Record the costs (B,) of the step with the last actions."""

    def aim(self, goal: Observations) -> None:  # noqa: B027  most methods ignore goals
        """Set the goals of the episodes, observations (B, ...), before the first `act`."""

    def upcoming_latents(self) -> np.ndarray:
        """Return the rest of the first environment's plan, (K, d), from the present latent on; empty without a plan."""
        return np.zeros((0, 0))

    def plan_errors(self, peek: Callable[[np.ndarray], Observations], steps: int) -> np.ndarray:
        """Return the distances (B, K) between planned and real latents 1..K steps ahead; (0, 0) without a plan.

        Args:
            peek: returns the observations (B, K, ...) after each of the actions (B, K, m).
            steps: the largest K.
        """
        return np.zeros((0, 0))

    def planning_facts(self) -> dict[str, Any]:
        """Return `fallbacks`, `levels` and `engine` of a policy that plans; empty for other policies."""
        return {}


class LatentHistory:
    """Encodes a stream of observations (B, ...) and actions (B, m) as latents (B, d).

    Each call computes the features of the newest observations only. At the start of an episode the first observations
    replace the missing ones, and the missing actions are 0, as in training.

    Args:
        encoder: see `MPDiffuserPipeline`.
        frame_encoder: computes the features of the pictures of a camera; None: the encoder's `features`.
        record: says which of several observations are pictures; None: there is one observation.
        scale: of the actions.
    """

    def __init__(
        self,
        encoder: ModelMixin,
        frame_encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        record: Record | None = None,
        scale: ActionScale | None = None,
    ) -> None:
        self.encoder, self.frame_encoder = encoder, frame_encoder or encoder.features
        self.pictures = record.names(PICTURE) if record else []
        self.vectors = [name for name in record.observations if name not in self.pictures] if record else []
        self.scale = scale
        self.device = encoder.device
        self.reset()

    @classmethod
    def of(cls, pipeline: MPDiffuserPipeline, engine: str = "torch") -> "LatentHistory":
        """Return the history for a pipeline; `engine` computes the features of pictures."""
        return cls(pipeline.encoder, pipeline.frame_encoder(engine), pipeline.record, pipeline.action_scale)

    def reset(self) -> None:
        """Clear the history, for new episodes."""
        self.features: torch.Tensor | None = None

    def _features(self, observations: Observations) -> torch.Tensor:
        """Observations (B, ...) -> features (B, F): those of all pictures, then the vectors."""
        tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(self.device)  # noqa: E731
        if not isinstance(observations, Mapping):
            return self.frame_encoder(tensor(observations))
        parts = [self.frame_encoder(tensor(observations[name])) for name in self.pictures]
        parts += [tensor(observations[name]).float() for name in self.vectors]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _actions(self, actions: np.ndarray) -> torch.Tensor:
        """Actions (..., m) in the data's units -> in [-1, 1]."""
        actions = np.asarray(actions, np.float32)
        return torch.from_numpy(self.scale.to_unit(actions) if self.scale else actions).to(self.device)

    @torch.inference_mode()
    def __call__(self, observations: Observations) -> torch.Tensor:
        """Add the newest observations (B, ...) to the history and return their latents (B, d)."""
        newest = self._features(observations)[:, None]
        history = self.encoder.history
        if self.features is None:
            self.features = newest.expand(-1, history, *newest.shape[2:])
            actions = torch.zeros(len(newest), history, self.encoder.config["action_dim"], device=self.device)
            self.actions, self.action = actions[:, 1:], actions[:, :1]
        else:
            self.features = torch.cat([self.features, newest], 1)[:, 1:]
            self.actions = torch.cat([self.actions, self.action], 1)[:, 1:]
        return self.encoder(self.features, self.actions)

    @torch.inference_mode()
    def standing(self, observations: Observations) -> torch.Tensor:
        """Return the latents (B, d) of observations (B, ...) that have not changed for a whole history."""
        newest = self._features(observations)[:, None]
        history = self.encoder.history
        actions = torch.zeros(len(newest), history - 1, self.encoder.config["action_dim"], device=self.device)
        return self.encoder(newest.expand(-1, history, *newest.shape[2:]), actions)

    def record_actions(self, actions: np.ndarray) -> None:
        """Record the actions (B, m) that are executed after the newest observations, in the data's units."""
        self.action = self._actions(actions)[:, None]

    @torch.inference_mode()
    def encode_future(self, observations: Observations, actions: np.ndarray) -> torch.Tensor:
        """Return latents (B, K, d) of K observations (B, K, ...) after actions (B, K, m). The history is unchanged."""
        assert self.features is not None
        batch, steps = actions.shape[:2]
        flat: Any = {"": observations} if not isinstance(observations, Mapping) else observations
        flat = {name: part.reshape(batch * steps, *part.shape[2:]) for name, part in flat.items()}
        flat = flat if isinstance(observations, Mapping) else flat[""]
        features = torch.cat([self.features, self._features(flat).unflatten(0, (batch, steps))], 1)
        taken = torch.cat([self.actions, self._actions(actions)], 1)
        history = self.encoder.history
        pairs = [(features[:, k : k + history], taken[:, k : k + history - 1]) for k in range(1, steps + 1)]
        return torch.stack([self.encoder(*pair) for pair in pairs], 1)


class Controller(Policy):
    """Model-predictive control with a pipeline.

    A plan fails if every candidate has non-finite numbers, or if planning raises an exception. The environment then
    continues its last plan, and executes the safe action after the end of that plan. `fallbacks` counts these plans.

    Args:
        pipeline: the loaded pipeline.
        config: the sampler settings; None: the pipeline's `sampler_defaults`. With `deadline_ms`, the first `act`
            measures the planning time on this machine and sets the number of levels.
        budget: limit on the cost of an episode. It needs the cost of each step (`record_costs`).
        objective: ranks plans instead of the ranker (see `Objective`).

    Raises:
        InputError: if the pipeline has no planner, the chunk does not fit the horizon, or the safe action does not
            have the actions' dimension.
    """

    def __init__(
        self,
        pipeline: MPDiffuserPipeline,
        config: SamplerConfig | None = None,
        budget: Budget | None = None,
        objective: Objective | None = None,
    ) -> None:
        if pipeline.planner is None:
            raise InputError("pipeline: holds no planner of MPDiffuser; Method.policy makes a baseline's controller")
        config = config or pipeline.sampler_defaults
        config.check_fit(pipeline.planner.config["horizon"], pipeline.action_bounds)
        safe = np.array(config.safe_action or [0.0] * pipeline.actions.config["dim"], np.float32)
        self.safe = torch.from_numpy(pipeline.action_scale.clip(safe)).to(pipeline.device)
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(config)
        self.calibrated = not config.deadline_ms
        self.chunk, self.budget, self.objective = config.chunk, budget, objective
        self.history = LatentHistory.of(pipeline, config.engine)
        self.reset([0])

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes, one for each seed. The controller keeps no state of the last episodes."""
        self.history.reset()
        if self.budget is not None:
            self.budget.reset(len(seeds))
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.plan: Plan | None = None
        self.goal: torch.Tensor | None = None
        self.latents: torch.Tensor | None = None
        self.executed = 0
        self.fallbacks = 0

    @torch.inference_mode()
    def act(
        self, observations: Observations, active: np.ndarray | None = None, goal: Observations | None = None
    ) -> np.ndarray:
        """Observations as in the training data -> finite actions (B, m) in the data's units, within their bounds.

        Observations are a dict name -> (B, ...), or an array (B, ...) if the data have one observation. For one robot
        the batch axis can be left out; the action is then (m,). Where active (B,) is false, the episode has ended. The
        controller then keeps the last plan. The goal, observations like the first argument, is what the robot is to
        see. It is kept until the next goal or `reset`.

        Raises:
            InputError: if the shape or dtype differs from the training data, if B is not the number of seeds, or
                without a goal if the planner was trained with goals.
        """
        count = len(self.generators)
        observations, single = read_observations(observations, count, self.pipeline.record)
        self.latents = self.history(observations)
        if goal is not None:
            self.goal = self._latent_of(goal)
        if self.pipeline.takes_goals and self.goal is None:
            raise InputError("goal: the planner was trained with goals; give act(observations, goal=...)")
        if self.plan is None or self.executed == self.chunk or goal is not None:
            self.plan = self._plan(np.arange(count) if active is None else np.flatnonzero(active))
            self.executed = 0
        actions = self._within_bounds(self.plan.executed_actions[:, self.executed])
        self.executed += 1
        self.history.record_actions(actions)
        return actions[0] if single else actions

    @torch.inference_mode()
    def aim(self, goal: Observations) -> None:
        """Set the goals, observations (B, ...). A planner that was trained without goals ignores them."""
        if self.pipeline.takes_goals:
            self.goal = self._latent_of(goal)

    def _latent_of(self, goal: Observations) -> torch.Tensor:
        return self.history.standing(read_observations(goal, len(self.generators), self.pipeline.record)[0])

    def _within_bounds(self, actions: torch.Tensor) -> np.ndarray:
        return self.pipeline.action_scale.clip(actions.cpu().numpy())

    @property
    def planned_now(self) -> bool:  # type: ignore[override]
        """Whether the last `act` sampled a new plan."""
        return self.executed == 1

    def record_costs(self, costs: np.ndarray) -> None:
        """Record the costs (B,) of the step with the last actions."""
        if self.budget is not None:
            self.budget.record_costs(costs)

    def upcoming_latents(self) -> np.ndarray:
        """Return the rest of the first environment's plan, (K, d), from the present latent on."""
        assert self.plan is not None
        return self.plan.executed_latents[0, self.executed - 1 :].cpu().numpy()

    @torch.inference_mode()
    def plan_errors(self, peek: Callable[[np.ndarray], Observations], steps: int) -> np.ndarray:
        """Return mean squared distances (B, K) between planned and real latents 1..K steps ahead.

        The unit of each dimension is its variance in the training data. Arguments as `Policy.plan_errors`.
        """
        assert self.plan is not None
        steps = min(steps, self.plan.actions.shape[2] - 1)
        actions = self._within_bounds(self.plan.executed_actions[:, :steps])
        real = self.history.encode_future(peek(actions), actions)
        tensors = (self.plan.executed_latents[:, 1 : steps + 1], real, self.pipeline.latents.std.detach())
        expected, reached, std = (part.cpu().numpy() for part in tensors)
        return (((expected - reached) / std) ** 2).mean(-1)

    def planning_facts(self) -> dict[str, Any]:
        """Return the number of failed plans, the number of noise levels, and the engine."""
        config = self.sampler.config
        return {"fallbacks": self.fallbacks, "levels": config.steps, "engine": config.engine}

    def _plan(self, rows: np.ndarray) -> Plan:
        """Return the plans of all rows, with new plans for `rows`. The executed plans are always finite.

        The plan of a row does not depend on the other rows.
        """
        assert self.latents is not None
        index = torch.from_numpy(rows).to(self.latents.device)
        latents = self.latents[index]
        rest = [part[index] for part in self._rest_of_plan(self.latents)]
        try:
            plan = self._drawn(latents, rows)
            sound = [part.isfinite().flatten(1).all(1) for part in (plan.executed_latents, plan.executed_actions)]
            bad = ~torch.stack([plan.scores.isfinite().any(1), *sound]).all(0)
        except InputError:  # the arguments are wrong
            raise
        except Exception as error:  # the robot needs an action even if planning fails
            warnings.warn(f"planning failed, falling back: {type(error).__name__}: {error}", stacklevel=3)
            scores = torch.full((len(rows), self.sampler.config.candidates), -torch.inf, device=latents.device)
            states, actions = (part[:, None].repeat(1, scores.shape[1], 1, 1) for part in rest)
            plan = Plan(states, actions, scores, torch.full_like(scores, 1 / scores.shape[1]), 0.0)
            bad = torch.ones(len(rows), dtype=torch.bool, device=latents.device)
        for part, last in zip((plan.latents, plan.actions), rest):
            part[bad] = last[bad][:, None]
        plan.weights[bad] = torch.eye(plan.weights.shape[1], device=latents.device)[0]
        self.fallbacks += int(bad.sum())
        if self.plan is None or len(rows) == len(self.latents):
            return plan
        whole = {name: getattr(self.plan, name).clone() for name in ("latents", "actions", "scores", "weights")}
        for name, part in whole.items():
            part[index] = getattr(plan, name)
        return Plan(**whole, plan_ms=plan.plan_ms)

    def _drawn(self, latents: torch.Tensor, rows: np.ndarray) -> Plan:
        """Sample a new plan for the latents (B, d) of `rows`."""
        if not self.calibrated:  # once, with the batch size of this controller
            self.sampler = self.pipeline.sampler(self.pipeline.within_deadline(self.sampler.config, latents))
            self.calibrated = True
        index = torch.from_numpy(rows).to(latents.device)
        more: dict[str, Any] = {} if self.objective is None else {"objective": self.objective}
        if self.budget is not None:
            whole = self.budget.allowance(latents.device)
            more["allowance"] = Allowance(*(getattr(whole, field.name)[index] for field in fields(whole)))
        last = self._shifted()
        last = None if last is None else (last[0][index], last[1][index])
        if self.goal is not None:
            more["goal"] = self.goal[index]
        return self.pipeline(latents, self.sampler, [self.generators[row] for row in rows], last, **more)

    def _rest_of_plan(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rest of the last plan, (B, H, d) and (B, H, m), padded with its last latent and the safe action.

        Without a plan, all rows have the present latents (B, d) and the safe action.
        """
        horizon = self.pipeline.planner.config["horizon"]
        safe = self.safe.expand(len(latents), horizon, -1)
        if self.plan is None:
            return torch.nan_to_num(latents)[:, None].repeat(1, horizon, 1), safe.clone()
        states, actions = (
            part[:, self.executed :] for part in (self.plan.executed_latents, self.plan.executed_actions)
        )
        padded = torch.cat([states, states[:, -1:].expand(-1, self.executed, -1)], 1)
        return padded, torch.cat([actions, safe[:, : self.executed]], 1)

    def _shifted(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the last plan without the executed steps, padded with its last row; None without a warm start."""
        if self.plan is None or not self.sampler.config.warm_start:
            return None
        shift = lambda x: torch.cat([x[:, self.executed :], x[:, -1:].expand(-1, self.executed, -1)], 1)  # noqa: E731
        return shift(self.plan.executed_latents), shift(self.plan.executed_actions)


class NetworkPolicy(Policy):
    """A policy without planning: a network maps decoded latents (B, d) to actions (B, m) in [-1, 1]."""

    def __init__(self, pipeline: MPDiffuserPipeline, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.pipeline, self.network = pipeline, network
        self.history = LatentHistory.of(pipeline)

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes. The seeds have no effect."""
        self.history.reset()
        self.count = len(seeds)

    @torch.inference_mode()
    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """Observations as in the training data -> actions (B, m) in the data's units (see `Controller.act`)."""
        observations, single = read_observations(observations, self.count, self.pipeline.record)
        scale = self.pipeline.action_scale
        actions = scale.clip(scale.to_data(self.network(self.history(observations)).cpu().numpy()))
        self.history.record_actions(actions)
        return actions[0] if single else actions
