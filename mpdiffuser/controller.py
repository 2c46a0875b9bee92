"""Policies: they map observations to actions, for a batch of environments that step together."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory, Observations
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Objective, Plan
from mpdiffuser.record import read_observations
from mpdiffuser.sampler import SamplerConfig


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

    def prepare(self, count: int) -> None:  # noqa: B027  most methods compile nothing
        """Compile what the control of `count` environments needs, before threads begin to control."""

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


class Controller(Policy):
    """Model-predictive control with a pipeline.

    With `delay` in the settings, a plan arrives that many decisions after its observation, as it does if planning takes
    time. Meanwhile the last plan is carried out. Its actions of these decisions are known, so the forward model
    predicts the latent in which the new plan will begin (Smith 1957). The first plan of an episode is there at once.

    A plan fails if every candidate has non-finite numbers, or if planning raises an exception. The environment then
    continues its last plan, and executes the safe action after the end of that plan. `fallbacks` counts these plans.

    Args:
        pipeline: the loaded pipeline.
        config: the sampler settings; None: the pipeline's `sampler_defaults`. With `deadline_ms`, the first `act`
            measures the planning time on this machine and sets the number of levels.
        budget: limit on the cost of an episode. It needs the cost of each step (`record_costs`).
        objective: ranks plans instead of the ranker (see `Objective`).

    Raises:
        InputError: if the pipeline has no planner, chunk or delay do not fit the horizon, there is no forward model for
            a delay, or the safe action does not have the actions' dimension.
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
        config.check_fit(pipeline.planner.config["horizon"], pipeline.action_bounds, pipeline.stride)
        if config.delay and pipeline.forward is None:
            raise InputError("sampler.delay: the pipeline has no forward model; train it with method=planner")
        self.safe = torch.from_numpy(pipeline.safe_action(config)).to(pipeline.device)
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(config)
        self.calibrated = not config.deadline_ms
        self.chunk, self.delay, self.budget, self.objective = config.chunk, config.delay, budget, objective
        self.history = LatentHistory.of(pipeline, config.engine)
        self.reset([0])

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes, one for each seed. The controller keeps no state of the last episodes."""
        self.history.reset()
        if self.budget is not None:
            self.budget.reset(len(seeds))
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.plan: Plan | None = None
        # a plan that is drawn, its age in decisions, and the age at which it begins
        self.coming: tuple[Callable[[], Plan], int, int] | None = None
        self.goal: torch.Tensor | None = None
        self.latents: torch.Tensor | None = None
        self.executed = 0  # decisions of the plan
        self.lag = 0  # decisions from the observation of the plan to its begin
        self.fallbacks = 0

    @property
    def _alone(self) -> bool:
        """Whether there is one robot. The last of several that is active is planned for as the others were."""
        return len(self.generators) == 1

    def prepare(self, count: int) -> None:
        """Compile what plans of `count` robots need."""
        plain = self.budget is None and self.objective is None and self.calibrated
        if count == 1 and plain and self.pipeline.fits_graph(self.sampler):
            self.pipeline.networks.plan_engine(self.sampler.config, self.pipeline.takes_goals)

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
        single = self._see(observations, goal)
        rows = np.arange(len(self.generators)) if active is None else np.flatnonzero(active)
        actions = self._next(rows, goal is not None)
        self.history.record_actions(actions)
        return actions[0] if single else actions

    def _see(self, observations: Observations, goal: Observations | None) -> bool:
        """Note the newest observations (B, ...), and the goal if there is a new one; return whether B is left out."""
        observations, single = read_observations(observations, len(self.generators), self.pipeline.record)
        self.latents = self.history(observations)
        if goal is not None:
            self.goal = self._latent_of(goal)
        if self.pipeline.takes_goals and self.goal is None:
            raise InputError("goal: the planner was trained with goals; give act(observations, goal=...)")
        return single

    def _next(self, rows: np.ndarray, now: bool) -> np.ndarray:
        """Return the next actions (B, m). New plans are for `rows`, the first ones for all; `now`: at once."""
        self.planned_now = False
        if self.plan is None or not len(rows):
            rows = np.arange(len(self.generators))
        if self.plan is None or now:
            self._follow(self._job(rows, 0)())
        self._take_arrived()
        if self.coming is None and self.executed + self.delay >= self.chunk:
            self.coming = self._begun(self._job(rows, self.delay)), 0, self.delay
            self._take_arrived()
        self.executed += 1
        return self._within_bounds(self._planned(self.executed - 1))

    def _take_arrived(self) -> None:
        """Follow the plan that is drawn, if it is there and begins now or earlier."""
        if self.coming is not None:
            take, age, lag = self.coming
            self.coming = take, age + 1, lag
            if age >= lag and self._arrived():
                self.coming = None  # also if it raises
                self._follow(take(), age - lag, lag)

    def _planned(self, step: int) -> torch.Tensor:
        """Return the actions (B, m) of a step of the plan."""
        assert self.plan is not None
        return self.plan.executed_actions[:, step]

    def _begun(self, job: Callable[[], Plan]) -> Callable[[], Plan]:
        """Begin to draw a plan, and return what gives it."""
        plan = job()
        return lambda: plan

    def _arrived(self) -> bool:
        """Whether the plan that is drawn is there."""
        return True

    def _follow(self, plan: Plan, executed: int = 0, lag: int = 0) -> None:
        """Carry out a plan from step `executed` on, which began `lag` decisions after its observation."""
        self.plan, self.coming, self.executed, self.lag, self.planned_now = plan, None, executed, lag, True

    @torch.inference_mode()
    def aim(self, goal: Observations) -> None:
        """Set the goals, observations (B, ...). A planner that was trained without goals ignores them."""
        if self.pipeline.takes_goals:
            self.goal = self._latent_of(goal)

    def _latent_of(self, goal: Observations) -> torch.Tensor:
        return self.history.standing(read_observations(goal, len(self.generators), self.pipeline.record)[0])

    def _within_bounds(self, actions: torch.Tensor) -> np.ndarray:
        return self.pipeline.action_scale.clip(actions.cpu().numpy())

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

        The unit of each dimension is its variance in the training data. With a stride K is 0, since the actions in
        between are not known. Arguments as `Policy.plan_errors`.
        """
        assert self.plan is not None
        first = self.executed - 1  # of the plan, that of the newest observation
        steps = min(steps, self.plan.actions.shape[2] - 1 - first) if self.pipeline.stride == 1 else 0
        if not steps:
            return np.zeros((len(self.generators), 0), np.float32)
        actions = self._within_bounds(self.plan.executed_actions[:, first : first + steps])
        real = self.history.encode_future(peek(actions), actions)
        planned = self.plan.executed_latents[:, first + 1 : first + steps + 1]
        tensors = (planned, real, self.pipeline.latents.std.detach())
        expected, reached, std = (part.cpu().numpy() for part in tensors)
        return (((expected - reached) / std) ** 2).mean(-1)

    def planning_facts(self) -> dict[str, Any]:
        """Return the number of failed plans, the number of noise levels, and the engine."""
        config = self.sampler.config
        return {"fallbacks": self.fallbacks, "levels": config.steps, "engine": config.engine}

    def _job(self, rows: np.ndarray, delay: int) -> Callable[[], Plan]:
        """Return what draws new plans for `rows`, which begin after the next `delay` actions of the last plan.

        The plans of the other rows stay. A plan does not depend on the other rows, and the executed plans are always
        finite. All that changes while it is drawn is read now.
        """
        assert self.latents is not None
        index = torch.from_numpy(rows).to(self.latents.device)
        latents, last, generators = self.latents[index], self.plan, [self.generators[row] for row in rows]
        held = self._held(self._rest_of_plan(self.latents, 0)[1][index, :delay])
        rest = [part[index] for part in self._rest_of_plan(self.latents, delay)]
        whole, more = len(rows) == len(self.latents), self._arguments(index, delay)

        def draw() -> Plan:
            plan = self._sound(self.pipeline.ahead(latents, held), generators, more, rest)
            if last is None or whole:
                return plan
            joined = {name: getattr(last, name).clone() for name in ("latents", "actions", "scores", "weights")}
            for name, part in joined.items():
                part[index] = getattr(plan, name)
            return Plan(**joined, plan_ms=plan.plan_ms)

        return draw

    def _held(self, actions: torch.Tensor) -> torch.Tensor:
        """Return what will be executed for the last plan's next actions (B, K, m), while a plan is drawn."""
        return actions

    @torch.inference_mode()
    def _sound(
        self,
        latents: torch.Tensor,
        generators: list[torch.Generator],
        more: dict[str, Any],
        rest: list[torch.Tensor],
    ) -> Plan:
        """Draw plans for latents (B, d); `rest`, states (B, H, d) and actions (B, H, m), replace those that fail."""
        began = time.perf_counter()
        try:
            if not self.calibrated:  # once, with the batch size of this controller
                plain = self._alone and not set(more) - {"goal"}
                config = self.pipeline.within_deadline(self.sampler.config, latents, graph=plain)
                self.sampler = self.pipeline.sampler(config)
                self.calibrated = True
            plan = self.pipeline(latents, self.sampler, generators, **more, graph=self._alone)
            bad = ~plan.sound
        except InputError:  # the arguments are wrong
            raise
        except Exception as error:  # the robot needs an action even if planning fails
            warnings.warn(f"planning failed, falling back: {type(error).__name__}: {error}", stacklevel=3)
            scores = torch.full((len(latents), self.sampler.config.candidates), -torch.inf, device=latents.device)
            states, actions = (part[:, None].repeat(1, scores.shape[1], 1, 1) for part in rest)
            weights, spent = torch.full_like(scores, 1 / scores.shape[1]), 1e3 * (time.perf_counter() - began)
            plan = Plan(states, actions, scores, weights, spent)
            bad = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        for part, last in zip((plan.latents, plan.actions), rest):
            part[bad] = last[bad][:, None]
        plan.weights[bad] = torch.eye(plan.weights.shape[1], device=latents.device)[0]
        self.fallbacks += int(bad.sum())
        return plan

    def _arguments(self, index: torch.Tensor, delay: int) -> dict[str, Any]:
        """Return what new plans of the rows `index`, which begin in `delay` decisions, depend on beside latents."""
        more: dict[str, Any] = {} if self.objective is None else {"objective": self.objective}
        if self.budget is not None:
            whole = self.budget.allowance(index.device)
            more["allowance"] = Allowance(*(getattr(whole, field.name)[index] for field in fields(whole)))
        last = self._shifted(delay)
        if last is not None:
            more["last"] = (last[0][index], last[1][index])
        if self.goal is not None:
            more["goal"] = self.goal[index]
        return more

    def _rest_of_plan(self, latents: torch.Tensor, delay: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last plan from `delay` decisions from now on, (B, H, d) and (B, H, m).

        It is padded with its last latent and the safe action. With a stride, only the plan's first action is known.
        Without a plan, all rows have the present latents (B, d) and the safe action.
        """
        horizon = self.pipeline.planner.config["horizon"]
        safe = self.safe.expand(len(latents), horizon, -1)
        if self.plan is None:
            return torch.nan_to_num(latents)[:, None].repeat(1, horizon, 1), safe.clone()
        states, actions = self.plan.executed_latents, self.plan.executed_actions
        done = min(self.executed + delay, horizon) if self.pipeline.stride == 1 else horizon
        padded = torch.cat([states[:, done:], states[:, -1:].expand(-1, done, -1)], 1)
        return padded, torch.cat([actions[:, done:], safe[:, :done]], 1)

    def _shifted(self, delay: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the last plan from `delay` decisions from now on, padded with its last row; None: no warm start."""
        if self.plan is None or not self.sampler.config.warm_start:
            return None
        done = min(self.executed + delay, self.plan.actions.shape[2])
        shift = lambda x: torch.cat([x[:, done:], x[:, -1:].expand(-1, done, -1)], 1)  # noqa: E731
        return shift(self.plan.executed_latents), shift(self.plan.executed_actions)


class NetworkPolicy(Policy):
    """A policy without planning: a network maps decoded latents (B, d) to actions (B, m) in [-1, 1]."""

    def __init__(self, pipeline: MPDiffuserPipeline, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.pipeline, self.network = pipeline, network
        self.history = LatentHistory.of(pipeline)
        self.safe = pipeline.safe_action(pipeline.sampler_defaults)

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
        actions = np.where(np.isfinite(actions).all(1, keepdims=True), actions, self.safe)
        self.history.record_actions(actions)
        return actions[0] if single else actions
