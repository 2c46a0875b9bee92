"""Controllers: observation in, action out. Each serves a batch of environments that step together."""

from collections.abc import Sequence
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
    """

    def __init__(self, encoder: ModelMixin) -> None:
        self.encoder = encoder
        self.device = encoder.device
        self.reset()

    def reset(self) -> None:
        self.features: torch.Tensor | None = None

    @torch.inference_mode()
    def __call__(self, observations: np.ndarray) -> torch.Tensor:
        """Observations (B, ...) that the action of `did` led to."""
        newest = self.encoder.features(torch.from_numpy(np.ascontiguousarray(observations)).to(self.device))[:, None]
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
        features = torch.cat([self.features, self.encoder.features(flat).unflatten(0, (batch, steps))], 1)
        taken = torch.cat([self.actions, torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)], 1)
        history = self.encoder.history
        pairs = [(features[:, k : k + history], taken[:, k : k + history - 1]) for k in range(1, steps + 1)]
        return torch.stack([self.encoder(*pair) for pair in pairs], 1)


class Controller:
    """Model-predictive control with a pipeline.

    Args:
        pipeline: the loaded pipeline.
        config: how to draw plans; with a `deadline_ms` the first `act` times this machine and settles the levels.
        chunk: actions to execute of each plan before planning again.
        budget: to keep to; tell it what each step cost with `budget.pay`.
        objective: what to plan for, in place of the ranker's rewards (see `Objective`).

    Raises:
        InputError: if the chunk does not fit the horizon.
    """

    def __init__(
        self,
        pipeline: MPDiffuserPipeline,
        config: SamplerConfig,
        chunk: int = 1,
        budget: Budget | None = None,
        objective: Objective | None = None,
    ) -> None:
        horizon = pipeline.planner.config["horizon"]
        if not 1 <= chunk < horizon:
            raise InputError(f"sampler.chunk: must lie in 1..{horizon - 1} (below the horizon), found {chunk}")
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(config)
        self.calibrated = not config.deadline_ms
        self.chunk, self.budget, self.objective = chunk, budget, objective
        self.history = LatentHistory(pipeline.encoder)
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

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (B, ...) as the encoder takes them -> actions (B, m) in [-1, 1], always finite.

        Where active (B,) is false no plan is drawn any more and the last one stands: that episode is over.
        """
        self.latents = self.history(observations)
        if not self.calibrated:  # once, with a batch of the size that is served
            self.sampler = self.pipeline.sampler(self.pipeline.within_deadline(self.sampler.config, self.latents))
            self.calibrated = True
        if self.plan is None or self.executed == self.chunk:
            self.plan = self._plan(np.arange(len(observations)) if active is None else np.flatnonzero(active))
            self.executed = 0
        actions = np.nan_to_num(self.plan.best_actions[:, self.executed], nan=0.0, posinf=1.0, neginf=-1.0)
        self.executed += 1
        self.history.did(actions)
        return actions

    @property
    def planned_now(self) -> bool:
        """Whether the last `act` drew a new plan."""
        return self.executed == 1

    def _plan(self, rows: np.ndarray) -> Plan:
        """The plans, those of `rows` drawn anew; a row's plan does not depend on the others."""
        assert self.latents is not None
        index = torch.from_numpy(rows).to(self.latents.device)
        more: dict[str, Any] = {} if self.objective is None else {"objective": self.objective}
        if self.budget is not None:
            whole = self.budget.allowance(self.latents.device)
            more["allowance"] = Allowance(whole.cost[index], whole.steps[index])
        last = self._shifted()
        last = None if last is None else (last[0][index], last[1][index])
        drawn = self.pipeline(self.latents[index], self.sampler, [self.generators[row] for row in rows], last, **more)
        if self.plan is None or len(rows) == len(self.latents):
            return drawn
        parts = {name: getattr(self.plan, name).copy() for name in ("latents", "actions", "scores", "chosen")}
        for name, part in parts.items():
            part[rows] = getattr(drawn, name)
        return Plan(**parts, plan_ms=drawn.plan_ms)

    def _shifted(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The last plan without the executed steps, its end repeated."""
        if self.plan is None or not self.sampler.config.warm_start:
            return None
        shift = lambda x: np.concatenate([x[:, self.executed :], x[:, -1:].repeat(self.executed, 1)], 1)  # noqa: E731
        assert self.latents is not None
        device = self.latents.device
        best = (self.plan.best_latents, self.plan.best_actions)
        if not all(np.isfinite(part).all() for part in best):  # or every later plan would inherit it
            return None
        return (torch.from_numpy(shift(best[0])).to(device), torch.from_numpy(shift(best[1])).to(device))


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
