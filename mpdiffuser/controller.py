"""Controllers: observation in, action out. Each serves a batch of environments that step together."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.errors import InputError
from mpdiffuser.models.cloning import BehaviourCloning
from mpdiffuser.pipeline import MPDiffuserPipeline, Objective, Plan
from mpdiffuser.sampler import SamplerConfig


class Acting(Protocol):
    """What evaluation needs of a controller."""

    def reset(self, seeds: Sequence[int]) -> None: ...

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray: ...


class LatentHistory:
    """Turns a stream of observations (B, ...) and actions (B, m) into latents (B, d), encoding only the newest
    observation.

    At an episode's start the first observation stands in for the missing past, with actions of 0, as in training.

    Args:
        see: what computes the encoder's features; None: the encoder itself.
    """

    def __init__(self, encoder: ModelMixin, see: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.encoder, self.see = encoder, see or encoder.features
        self.device = encoder.device
        self.reset()

    def reset(self) -> None:
        self.features: torch.Tensor | None = None

    @torch.inference_mode()
    def __call__(self, observations: np.ndarray) -> torch.Tensor:
        """Observations (B, ...) that the action of `did` led to."""
        newest = self.see(torch.from_numpy(np.ascontiguousarray(observations)).to(self.device))[:, None]
        history = self.encoder.history
        if self.features is None:
            self.features = newest.expand(-1, history, *newest.shape[2:])
            actions = torch.zeros(len(newest), history, self.encoder.config["action_dim"], device=self.device)
            self.actions, self.action = actions[:, 1:], actions[:, :1]
        else:
            self.features = torch.cat([self.features, newest], 1)[:, 1:]
            self.actions = torch.cat([self.actions, self.action], 1)[:, 1:]
        return self.encoder(self.features, self.actions)

    def did(self, actions: np.ndarray) -> None:
        """Note the actions (B, m) taken at the newest observations."""
        self.action = torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)[:, None]

    @torch.inference_mode()
    def ahead(self, observations: np.ndarray, actions: np.ndarray) -> torch.Tensor:
        """Latents (B, K, d) of K observations (B, K, ...) that the actions (B, K, m) would lead to; the history stays
        as it is."""
        assert self.features is not None
        batch, steps = observations.shape[:2]
        flat = torch.from_numpy(np.ascontiguousarray(observations)).flatten(0, 1).to(self.device)
        features = torch.cat([self.features, self.see(flat).unflatten(0, (batch, steps))], 1)
        taken = torch.cat([self.actions, torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)], 1)
        history = self.encoder.history
        pairs = [(features[:, k : k + history], taken[:, k : k + history - 1]) for k in range(1, steps + 1)]
        return torch.stack([self.encoder(*pair) for pair in pairs], 1)


class Controller:
    """Model-predictive control with a pipeline.

    Where no plan can be had for an environment (every candidate has numbers that are not finite, or planning fails), it
    carries on with the last plan, and when that has run out takes the safe action; `fallbacks` counts such plans.

    Args:
        pipeline: the loaded pipeline.
        config: how to draw plans; with a `deadline_ms` the first `act` times this machine and settles the levels.
        chunk: actions to execute of each plan before planning again.
        safe_action: (m,) in [-1, 1]; None or empty: zeros.
        budget: to keep to; tell it what each step cost with `budget.pay`.
        objective: what to plan for, in place of the ranker's rewards (see `Objective`).

    Raises:
        InputError: if the chunk does not fit the horizon, or the safe action not the actions.
    """

    def __init__(
        self,
        pipeline: MPDiffuserPipeline,
        config: SamplerConfig,
        chunk: int = 1,
        safe_action: Sequence[float] | None = None,
        budget: Budget | None = None,
        objective: Objective | None = None,
    ) -> None:
        horizon, action_dim = (pipeline.planner.config[key] for key in ("horizon", "action_dim"))
        if not 1 <= chunk < horizon:
            raise InputError(f"sampler.chunk: must lie in 1..{horizon - 1} (below the horizon), found {chunk}")
        self.safe = np.asarray(safe_action if safe_action else [0.0] * action_dim, np.float32)
        if self.safe.shape != (action_dim,) or not (np.abs(self.safe) <= 1).all():
            raise InputError(f"sampler.safe_action: must be {action_dim} numbers in -1..1, found {safe_action}")
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(config)
        self.calibrated = not config.deadline_ms
        self.chunk, self.budget, self.objective = chunk, budget, objective
        self.history = LatentHistory(pipeline.encoder, pipeline.features(config.engine))
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

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, ...) as the encoder takes them -> actions (B, m) in [-1, 1], always finite.

        Where active (B,) is false no plan is drawn any more and the last one stands: that episode is over.

        Raises:
            InputError: if the observations are not what the pipeline was trained on, or not one a seed.
        """
        check_observations(observations, len(self.generators), self.record)
        self.latents = self.history(observations)
        if self.plan is None or self.executed == self.chunk:
            self.plan = self._plan(np.arange(len(observations)) if active is None else np.flatnonzero(active))
            self.executed = 0
        actions = np.clip(self.plan.best_actions[:, self.executed], -1, 1)
        self.executed += 1
        self.history.did(actions)
        return actions

    @property
    def planned_now(self) -> bool:
        """Whether the last `act` drew a new plan."""
        return self.executed == 1

    def _plan(self, rows: np.ndarray) -> Plan:
        """The plans, those of `rows` drawn anew, their best candidates finite, whatever happens.

        A row's plan does not depend on the others.
        """
        assert self.latents is not None
        latents = self.latents[torch.from_numpy(rows).to(self.latents.device)]
        left = [part[rows] for part in self._left(self.latents)]
        try:
            plan = self._drawn(latents, rows)
            best = (plan.scores[np.arange(len(rows)), plan.chosen], plan.best_latents, plan.best_actions)
            bad = ~np.logical_and.reduce([np.isfinite(part).reshape(len(rows), -1).all(1) for part in best])
        except InputError:  # what was asked for cannot be
            raise
        except Exception as error:  # whatever went wrong, the robot needs an action now
            warnings.warn(f"planning failed, falling back: {type(error).__name__}: {error}", stacklevel=3)
            scores = np.full((len(rows), self.sampler.config.candidates), -np.inf, np.float32)
            states, actions = (part[:, None].repeat(scores.shape[1], 1) for part in left)
            plan = Plan(states, actions, scores, scores.argmax(1), 0.0)
            bad = np.ones(len(rows), bool)
        for part, kept in zip((plan.latents, plan.actions), left):
            part[bad, plan.chosen[bad]] = kept[bad]
        self.fallbacks += int(bad.sum())
        if self.plan is None or len(rows) == len(self.latents):
            return plan
        whole = {name: getattr(self.plan, name).copy() for name in ("latents", "actions", "scores", "chosen")}
        for name, part in whole.items():
            part[rows] = getattr(plan, name)
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
            more["allowance"] = Allowance(whole.cost[index], whole.steps[index])
        last = self._shifted()
        last = None if last is None else (last[0][index], last[1][index])
        return self.pipeline(latents, self.sampler, [self.generators[row] for row in rows], last, **more)

    def _left(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """What is left of the last plan, (B, H, d) and (B, H, m), then its last latent and the safe action; with no
        plan the present latents (B, d) and the safe action."""
        horizon = self.pipeline.planner.config["horizon"]
        if self.plan is None:
            here = torch.nan_to_num(latents).cpu().numpy()[:, None].repeat(horizon, 1)
            return here, np.tile(self.safe, (len(latents), horizon, 1))
        states, actions = (part[:, self.executed :] for part in (self.plan.best_latents, self.plan.best_actions))
        safe = np.tile(self.safe, (len(latents), self.executed, 1))
        return np.concatenate([states, states[:, -1:].repeat(self.executed, 1)], 1), np.concatenate([actions, safe], 1)

    def _shifted(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The last plan without the executed steps, its end repeated."""
        if self.plan is None or not self.sampler.config.warm_start:
            return None
        shift = lambda x: np.concatenate([x[:, self.executed :], x[:, -1:].repeat(self.executed, 1)], 1)  # noqa: E731
        assert self.latents is not None
        device = self.latents.device
        return tuple(torch.from_numpy(shift(x)).to(device) for x in (self.plan.best_latents, self.plan.best_actions))  # type: ignore[return-value]


def check_observations(observations: np.ndarray, count: int, record: dict[str, Any] | None) -> None:
    """Raises InputError unless observations (B, ...) are `count`, of the record's shape and dtype if there is one."""
    found = np.asarray(observations)
    if len(found) != count:
        raise InputError(f"observations: one for each of the {count} seeds of reset needed, found {len(found)}")
    if record is None:
        return
    shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
    if found.shape[1:] != shape or (found.dtype != dtype and not found.dtype.kind == dtype.kind == "f"):
        raise InputError(
            f"observations: the pipeline was trained on {dtype} of shape {shape}, found {found.dtype} of shape "
            f"{found.shape[1:]}; give it what its data held (see `info` in its model_index.json)"
        )


class CloningController:
    """Acts with a behaviour-cloning policy on the same latents."""

    def __init__(self, encoder: ModelMixin, policy: BehaviourCloning) -> None:
        self.history = LatentHistory(encoder)
        self.policy = policy

    def reset(self, seeds: Sequence[int]) -> None:
        self.history.reset()

    @torch.inference_mode()
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        actions = self.policy(self.history(observations)).cpu().numpy()
        self.history.did(actions)
        return actions


class RandomController:
    """Uniform random actions (B, m), the floor of every table."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def reset(self, seeds: Sequence[int]) -> None:
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        return np.stack([g.uniform(-1, 1, self.action_dim) for g in self.generators]).astype(np.float32)
