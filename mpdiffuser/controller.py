"""Policies: observation in, action out. Each serves a batch of environments that step together."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline, Objective, Plan
from mpdiffuser.sampler import BUDGET_TEMPERATURE, SamplerConfig


class Policy(ABC):
    """What evaluation needs of every method.

    Attributes:
        plan: the plan that is followed; None without planning.
        planned_now: whether the last `act` drew a new plan.
    """

    plan: Plan | None = None
    planned_now: bool = False

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> None:
        """Forget everything; one seed for each environment of the batch."""

    @abstractmethod
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, ...) -> actions (B, m) in [-1, 1]. Episodes where active (B,) is false are over."""

    def record_costs(self, costs: np.ndarray) -> None:  # noqa: B027  most methods ignore costs
        """Costs (B,) of the step that the last actions led to."""

    def upcoming_latents(self) -> np.ndarray:
        """The rest of the first environment's plan, (K, d), the present latent first; empty without planning."""
        return np.zeros((0, 0))

    def plan_errors(self, peek: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
        """Distances (B, K) of planned and real latents 1..K steps ahead, K at most `steps`; (0, 0) without planning.

        Args:
            peek: gives the observations (B, K, ...) after each of the actions (B, K, m).
        """
        return np.zeros((0, 0))

    def planning_facts(self) -> dict[str, Any]:
        """`fallbacks`, `levels` and `engine` of a method that plans."""
        return {}


class LatentHistory:
    """Turns a stream of observations (B, ...) and actions (B, m) into latents (B, d).

    Only the newest observation is encoded. At an episode's start the first observation stands for the missing past,
    with actions of 0, as in training.

    Args:
        frame_encoder: computes the encoder's features; None: the encoder itself.
    """

    def __init__(
        self, encoder: ModelMixin, frame_encoder: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.encoder, self.frame_encoder = encoder, frame_encoder or encoder.features
        self.device = encoder.device
        self.reset()

    def reset(self) -> None:
        self.features: torch.Tensor | None = None

    @torch.inference_mode()
    def __call__(self, observations: np.ndarray) -> torch.Tensor:
        """Latents (B, d) of the observations (B, ...) that follow the recorded actions."""
        newest = self.frame_encoder(torch.from_numpy(np.ascontiguousarray(observations)).to(self.device))[:, None]
        history = self.encoder.history
        if self.features is None:
            self.features = newest.expand(-1, history, *newest.shape[2:])
            actions = torch.zeros(len(newest), history, self.encoder.config["action_dim"], device=self.device)
            self.actions, self.action = actions[:, 1:], actions[:, :1]
        else:
            self.features = torch.cat([self.features, newest], 1)[:, 1:]
            self.actions = torch.cat([self.actions, self.action], 1)[:, 1:]
        return self.encoder(self.features, self.actions)

    def record_actions(self, actions: np.ndarray) -> None:
        """Note the actions (B, m) that were executed at the newest observations."""
        self.action = torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)[:, None]

    @torch.inference_mode()
    def encode_future(self, observations: np.ndarray, actions: np.ndarray) -> torch.Tensor:
        """Latents (B, K, d) of K observations (B, K, ...) after the actions (B, K, m). The history does not change."""
        assert self.features is not None
        batch, steps = observations.shape[:2]
        flat = torch.from_numpy(np.ascontiguousarray(observations)).flatten(0, 1).to(self.device)
        features = torch.cat([self.features, self.frame_encoder(flat).unflatten(0, (batch, steps))], 1)
        taken = torch.cat([self.actions, torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)], 1)
        history = self.encoder.history
        pairs = [(features[:, k : k + history], taken[:, k : k + history - 1]) for k in range(1, steps + 1)]
        return torch.stack([self.encoder(*pair) for pair in pairs], 1)


class Controller(Policy):
    """Model-predictive control with a pipeline.

    An environment without a usable plan (every candidate has non-finite numbers, or planning fails) continues its last
    plan, and takes the safe action when that plan has run out. `fallbacks` counts such plans.

    Args:
        pipeline: the loaded pipeline.
        config: how to draw plans; None: as saved with the pipeline. With a `deadline_ms`, the first `act` measures this
            machine and sets the number of levels.
        budget: costs to stay within; tell the controller the cost of each step with `record_costs`.
        objective: ranks plans in place of the ranker's rewards (see `Objective`).

    Raises:
        InputError: if the chunk does not fit the horizon, or the safe action not the actions.
    """

    def __init__(
        self,
        pipeline: MPDiffuserPipeline,
        config: SamplerConfig | None = None,
        budget: Budget | None = None,
        objective: Objective | None = None,
    ) -> None:
        config = config or pipeline.sampler_defaults
        if config.temperature is None and budget is not None:
            config = replace(config, temperature=BUDGET_TEMPERATURE)
        horizon, action_dim = (pipeline.planner.config[key] for key in ("horizon", "action_dim"))
        if not config.chunk < horizon:
            raise InputError(f"sampler.chunk: must lie in 1..{horizon - 1} (below the horizon), found {config.chunk}")
        if len(config.safe_action) not in (0, action_dim):
            raise InputError(f"sampler.safe_action: must be {action_dim} numbers in -1..1, found {config.safe_action}")
        self.safe = torch.tensor(list(config.safe_action) or [0.0] * action_dim, device=pipeline.device)
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(config)
        self.calibrated = not config.deadline_ms
        self.chunk, self.budget, self.objective = config.chunk, budget, objective
        self.history = LatentHistory(pipeline.encoder, pipeline.frame_encoder(config.engine))
        self.record = pipeline.config["info"].get("observation")
        self.reset([0])

    def reset(self, seeds: Sequence[int]) -> None:
        """Forget everything; one seed for each environment of the batch."""
        self.history.reset()
        if self.budget is not None:
            self.budget.reset(len(seeds))
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.plan: Plan | None = None
        self.latents: torch.Tensor | None = None
        self.executed = 0
        self.fallbacks = 0

    @torch.inference_mode()
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, ...) as the encoder takes them -> actions (B, m) in [-1, 1], always finite.

        Where active (B,) is false the episode is over: no new plan is drawn and the last one stays.

        Raises:
            InputError: if the observations differ from the training data's kind, or are not one for each seed.
        """
        check_observations(observations, len(self.generators), self.record)
        self.latents = self.history(observations)
        if self.plan is None or self.executed == self.chunk:
            self.plan = self._plan(np.arange(len(observations)) if active is None else np.flatnonzero(active))
            self.executed = 0
        actions = self.plan.best_actions[:, self.executed].clamp(-1, 1).cpu().numpy()
        self.executed += 1
        self.history.record_actions(actions)
        return actions

    @property
    def planned_now(self) -> bool:  # type: ignore[override]
        """Whether the last `act` drew a new plan."""
        return self.executed == 1

    def record_costs(self, costs: np.ndarray) -> None:
        """Costs (B,) of the step that the last actions led to."""
        if self.budget is not None:
            self.budget.record_costs(costs)

    def upcoming_latents(self) -> np.ndarray:
        """The rest of the first environment's plan, (K, d), the present latent first."""
        assert self.plan is not None
        return self.plan.best_latents[0, self.executed - 1 :].cpu().numpy()

    @torch.inference_mode()
    def plan_errors(self, peek: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
        """Mean squared distances (B, K) of planned and real latents 1..K steps ahead, in the data's variances."""
        assert self.plan is not None
        steps = min(steps, self.plan.actions.shape[2] - 1)
        actions = self.plan.best_actions[:, :steps].clamp(-1, 1).cpu().numpy()
        real = self.history.encode_future(peek(actions), actions)
        tensors = (self.plan.best_latents[:, 1 : steps + 1], real, self.pipeline.latents.std.detach())
        expected, reached, std = (part.cpu().numpy() for part in tensors)
        return (((expected - reached) / std) ** 2).mean(-1)

    def planning_facts(self) -> dict[str, Any]:
        """Unusable plans so far, noise levels of a plan, and what computed the networks."""
        config = self.sampler.config
        return {"fallbacks": self.fallbacks, "levels": config.steps, "engine": config.engine}

    def _plan(self, rows: np.ndarray) -> Plan:
        """The plans, those of `rows` drawn anew. Their best candidates are always finite.

        A row's plan does not depend on the others.
        """
        assert self.latents is not None
        index = torch.from_numpy(rows).to(self.latents.device)
        latents = self.latents[index]
        rest = [part[index] for part in self._rest_of_plan(self.latents)]
        try:
            plan = self._drawn(latents, rows)
            best = (plan.scores[torch.arange(len(rows)), plan.chosen], plan.best_latents, plan.best_actions)
            bad = ~torch.stack([part.isfinite().reshape(len(rows), -1).all(1) for part in best]).all(0)
        except InputError:  # the request itself is wrong
            raise
        except Exception as error:  # for any other reason: the robot needs an action now
            warnings.warn(f"planning failed, falling back: {type(error).__name__}: {error}", stacklevel=3)
            scores = torch.full((len(rows), self.sampler.config.candidates), -torch.inf, device=latents.device)
            states, actions = (part[:, None].repeat(1, scores.shape[1], 1, 1) for part in rest)
            plan = Plan(states, actions, scores, torch.zeros_like(index), 0.0)
            bad = torch.ones(len(rows), dtype=torch.bool, device=latents.device)
        for part, last in zip((plan.latents, plan.actions), rest):
            part[bad, plan.chosen[bad]] = last[bad]
        self.fallbacks += int(bad.sum())
        if self.plan is None or len(rows) == len(self.latents):
            return plan
        whole = {name: getattr(self.plan, name).clone() for name in ("latents", "actions", "scores", "chosen")}
        for name, part in whole.items():
            part[index] = getattr(plan, name)
        return Plan(**whole, plan_ms=plan.plan_ms)

    def _drawn(self, latents: torch.Tensor, rows: np.ndarray) -> Plan:
        """A new plan for latents (B, d), those of `rows`."""
        if not self.calibrated:  # once, with a batch of the size that is served
            self.sampler = self.pipeline.sampler(self.pipeline.within_deadline(self.sampler.config, latents))
            self.calibrated = True
        index = torch.from_numpy(rows).to(latents.device)
        more: dict[str, Any] = {} if self.objective is None else {"objective": self.objective}
        if self.budget is not None:
            whole = self.budget.allowance(latents.device)
            more["allowance"] = Allowance(*(getattr(whole, field.name)[index] for field in fields(whole)))
        last = self._shifted()
        last = None if last is None else (last[0][index], last[1][index])
        return self.pipeline(latents, self.sampler, [self.generators[row] for row in rows], last, **more)

    def _rest_of_plan(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rest of the last plan, (B, H, d) and (B, H, m), padded with its last latent and the safe action. Without
        a plan: the present latents (B, d) and the safe action."""
        horizon = self.pipeline.planner.config["horizon"]
        safe = self.safe.expand(len(latents), horizon, -1)
        if self.plan is None:
            return torch.nan_to_num(latents)[:, None].repeat(1, horizon, 1), safe.clone()
        states, actions = (part[:, self.executed :] for part in (self.plan.best_latents, self.plan.best_actions))
        padded = torch.cat([states, states[:, -1:].expand(-1, self.executed, -1)], 1)
        return padded, torch.cat([actions, safe[:, : self.executed]], 1)

    def _shifted(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The last plan without the executed steps, its end repeated."""
        if self.plan is None or not self.sampler.config.warm_start:
            return None
        shift = lambda x: torch.cat([x[:, self.executed :], x[:, -1:].expand(-1, self.executed, -1)], 1)  # noqa: E731
        return shift(self.plan.best_latents), shift(self.plan.best_actions)


def check_observations(observations: np.ndarray, count: int, record: dict[str, Any] | None) -> None:
    """Raises InputError unless observations (B, ...) are `count`, of the record's shape and dtype if there is one."""
    found = np.asarray(observations)
    if len(found) != count:
        raise InputError(f"observations: must be one for each of the {count} seeds of reset, found {len(found)}")
    if record is None:
        return
    shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
    if found.shape[1:] != shape or (found.dtype != dtype and not found.dtype.kind == dtype.kind == "f"):
        raise InputError(
            f"observations: the pipeline was trained on {dtype} of shape {shape}, found {found.dtype} of shape "
            f"{found.shape[1:]}; give it observations as in its data (see `info` in its model_index.json)"
        )


class NetworkPolicy(Policy):
    """Acts with a network that maps decoded latents (B, d) to actions (B, m), without planning."""

    def __init__(self, encoder: ModelMixin, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.history = LatentHistory(encoder)
        self.network = network

    def reset(self, seeds: Sequence[int]) -> None:
        self.history.reset()

    @torch.inference_mode()
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        actions = self.network(self.history(observations)).cpu().numpy()
        self.history.record_actions(actions)
        return actions
