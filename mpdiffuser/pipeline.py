"""The pipeline: everything that acting needs, in one folder of safetensors and JSON."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mpdiffuser.budget import Allowance
from mpdiffuser.engines import Prepared, compiled, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_manifest
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.safe_loading import check_pipeline
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

# decoded latents (B, H, d) and actions (B, H, m) -> the reward of each step (B, H); -inf forbids
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Plan:
    """Candidate plans, in the encoder's own space.

    latents (B, N, H, d), actions (B, N, H, m), scores (B, N), chosen (B,) index of the candidate to follow, plan_ms the
    time it took to draw and rank them all; costs (B, N), expected over the rest of the episode, under a budget.
    """

    latents: np.ndarray
    actions: np.ndarray
    scores: np.ndarray
    chosen: np.ndarray
    plan_ms: float
    costs: np.ndarray | None = None

    @property
    def best_latents(self) -> np.ndarray:
        """(B, H, d)"""
        return self.latents[np.arange(len(self.chosen)), self.chosen]

    @property
    def best_actions(self) -> np.ndarray:
        """(B, H, m)"""
        return self.actions[np.arange(len(self.chosen)), self.chosen]


class MPDiffuserPipeline(DiffusionPipeline):
    """Encoder, normalisers, planner, dynamics, ranker, schedule and, for looking, a decoder.

    Args:
        encoder: observations to latents: `history`, `features(observations)`, `forward(features)` (see `Controller`);
            where a network computes its features from pixels this is its `frame_net`.
        latents, actions: fitted normalisers; condition: the targets' fitted marginals.
        info: what the pipeline was trained on (task, rendering, ...); JSON.
    """

    drawing: ClassVar[type[Sampler]] = Sampler
    # a folder that was trained for a rival alone holds none of our own models
    _optional_components = ["condition", "planner", "dynamics", "ranker", "decoder"]  # noqa: RUF012  diffusers adds it to a list

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
        decoder: ModelMixin | None = None,
        info: dict[str, Any] | None = None,
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
            decoder=decoder,
        )
        self.register_to_config(info=info or {})

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the components, as diffusers does, and the manifest that `from_pretrained` verifies."""
        super().save_pretrained(folder, safe_serialization=True, **options)
        write_manifest(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """A pipeline from a folder, which may come from a stranger: nothing in it is executed.

        Raises:
            InputError: if the folder is not one of ours, whole, as `check_pipeline` says.
        """
        check_pipeline(Path(folder))
        return super().from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options)

    def sampler(self, config: SamplerConfig) -> Sampler:
        """Draws plans as `config` says, its engine resolved.

        Raises:
            InputError: if its engine is not installed, or its composition needs a dynamics model that is not there.
        """
        config = replace(config, engine=resolved(config.engine, self.device))
        bounds = [torch.cat(pair) for pair in zip(self.latents.bounds(), self.actions.bounds())]
        planner, dynamics = (self._prepared(name, config) for name in ("planner", "dynamics"))
        return self.drawing(planner, dynamics, self.schedule, bounds[0], bounds[1], config)

    def _prepared(self, name: str, config: SamplerConfig) -> Any:
        model = getattr(self, name)
        if model is None:
            return None
        levels = self.schedule.grid(config.steps, config.grid)
        return Prepared(model, levels, None if config.engine == "torch" else self.network(name, config.engine))

    def features(self, engine: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The encoder's `features`, where it sees pixels computed by an engine if that can take its network; always in
        float32, since what is wrong with the present no level of noise mends."""
        if not self.sees_pixels:
            return self.encoder.features
        try:
            return self.network("frame_net", resolved(engine, self.device).removesuffix("_bf16"))
        except InputError:
            return self.encoder.features

    @property
    def sees_pixels(self) -> bool:
        return hasattr(self.encoder, "frame_net") and "observation" in self.config["info"]

    def network(self, name: str, engine: str) -> Callable[..., torch.Tensor]:
        """What computes one of `networks`, a denoiser's `denoise`; compiled once for each weights."""
        model, example = self.networks()[name]
        cache = self.__dict__.setdefault("_engines", {})
        if cache.get((name, engine), (None,))[0] is not model:
            if name == "frame_net":
                run = compiled(model, engine, example)
            else:
                x, *told = example
                modulation = model.modulation(told[0], x[:, 0, : model.config["latent_dim"]], *told[1:]).detach()
                run = compiled(model, engine, (x, modulation), "denoise")
            cache[name, engine] = (model, run)
        return cache[name, engine][1]

    def networks(self) -> dict[str, tuple[Any, tuple[torch.Tensor, ...]]]:
        """What engines can compute: the planner, the dynamics model and the encoder's frame_net, where they are there,
        each with inputs of its forward pass, a batch of 2."""
        denoisers = {name: getattr(self, name) for name in ("planner", "dynamics")}
        found = {name: (model, model.example()) for name, model in denoisers.items() if model is not None}
        if self.sees_pixels:
            frames = torch.zeros(2, *self.config["info"]["observation"]["shape"], dtype=torch.uint8)
            found["frame_net"] = (self.encoder.frame_net, (frames,))
        return found

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The condition (B, c) to ask for at latents (B, d): the expectile of `level`, one or (B,), of what the data
        got from there, and the cost_to_go (B,), where there are costs.

        A fixed wish is out of reach in most states, and a planner asked for what it never saw draws nonsense.
        """
        wish = [self.ranker.expectile(latents, level, cost_to_go)]
        return self.condition.normalize(torch.stack(wish if cost_to_go is None else [*wish, cost_to_go], -1))

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> torch.Tensor | None:
        """The cost_to_go (B,) to ask for at latents (B, d); without an allowance the least of the data."""
        if self.ranker.prices is None:
            if allowance is not None:
                raise InputError("budget: this pipeline's data had no costs, so it cannot keep to one")
            return None
        low, _ = self.ranker.prices.bounds()
        least = self.ranker.prices.denormalize(low).expand(len(latents))
        return least if allowance is None else allowance.rate.maximum(least)

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What candidates are ranked by, (B N,), of decoded states (B N, H, d), actions (B N, H, m), and the cost_to_go
        (B N,) that may be spent, where there are costs."""
        return self.ranker.scores(states, actions, cost_to_go)

    def within_deadline(self, config: SamplerConfig, latents: torch.Tensor, repeats: int = 5) -> SamplerConfig:
        """`config` with as many levels, 1 to config.steps, as a plan for a batch like latents (B, d) can have in
        config.deadline_ms, by plans timed now: the median of `repeats` with few levels and with all."""

        def milliseconds(levels: int) -> float:
            sampler = self.sampler(replace(config, steps=levels, warm_start=0))
            generators = [torch.Generator().manual_seed(0) for _ in latents]
            return float(np.median([self(latents, sampler, generators).plan_ms for _ in range(repeats + 1)][1:]))

        if not config.deadline_ms or config.steps == 1:
            return config
        one, all_levels = milliseconds(1), milliseconds(config.steps)
        each = max((all_levels - one) / (config.steps - 1), 1e-3)
        fit = 1 + math.floor((config.deadline_ms - one) / each)
        steps = min(max(fit, 1), config.steps)
        return replace(config, steps=steps, warm_start=min(config.warm_start, steps))

    def _slope(self, objective: Objective, pull: float, x: torch.Tensor) -> torch.Tensor:
        """Gradient of pull times the objective's sum at clean normalised x (B, H, d + m): like x."""
        d = self.latents.config["dim"]
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            rewards = judge(objective, self.latents.denormalize(x[..., :d]), self.actions.denormalize(x[..., d:]))
            (gradient,) = torch.autograd.grad(pull * rewards[rewards.isfinite()].sum(), x)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    @torch.inference_mode()
    def __call__(
        self,
        latents: torch.Tensor,
        sampler: Sampler,
        generators: list[torch.Generator],
        last: tuple[torch.Tensor, torch.Tensor] | None = None,
        goal: torch.Tensor | None = None,
        committed: torch.Tensor | None = None,
        allowance: Allowance | None = None,
        objective: Objective | None = None,
    ) -> Plan:
        """Draw N candidate plans for each latent, score them, choose.

        Args:
            latents: z_0, (B, d), in the encoder's own space.
            sampler: from `sampler(config)`; reused between calls.
            generators: one a row, so that a row's plan does not depend on the batch it sits in.
            last: shifted last plan to warm-start from: latents (B, H, d) and actions (B, H, m).
            goal: the plans' last latent, (B, d), where it is known already.
            committed: the plans' first actions, (B, K, m), where they are decided already.
            allowance: what each row may still spend; a candidate that fits is chosen, the cheapest if none does.
            objective: ranks the candidates in place of the ranker; the best one is chosen.
        """
        began = time.perf_counter()
        config, batch, n = sampler.config, len(latents), sampler.config.candidates
        c = self.planner.config
        shape = (n, c["horizon"], c["latent_dim"] + c["action_dim"])
        device = latents.device

        def noise() -> torch.Tensor:
            return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)

        def spread(normalizer: Normalizer, known: torch.Tensor | None) -> torch.Tensor | None:
            return None if known is None else normalizer.normalize(known).repeat_interleave(n, 0)

        present = self.latents.normalize(latents).repeat_interleave(n, 0)
        start = None
        if last is not None and config.warm_start:
            start = torch.cat([self.latents.normalize(last[0]), self.actions.normalize(last[1])], -1)
            start = start.repeat_interleave(n, 0)
        price = self.affordable(latents, allowance)
        price = None if price is None else price.repeat_interleave(n, 0)
        levels = config.target + config.target_spread * torch.linspace(-1, 1, n, device=device)
        wish = self.target(latents.repeat_interleave(n, 0), levels.clamp(0, 1).repeat(batch), price)
        slope = partial(self._slope, objective, config.pull) if objective is not None and config.pull else None
        x = sampler(present, wish, noise, start, spread(self.latents, goal), spread(self.actions, committed), slope)
        d = latents.shape[-1]
        states = self.latents.denormalize(x[..., :d])
        actions = self.actions.denormalize(x[..., d:]).clamp(-1, 1)
        scores = self.scores(states, actions, price) if objective is None else judge(objective, states, actions)
        array = lambda tensor: tensor.unflatten(0, (batch, n)).cpu().numpy()  # noqa: E731
        costs = left = None
        if allowance is not None:
            left_steps, rate = (part.repeat_interleave(n) for part in (allowance.steps, allowance.rate))
            costs = array(self.ranker.expense(states, actions, left_steps, rate))
            left = allowance.cost.cpu().numpy()
        temperature = 0.0 if objective is not None else config.rank_temperature
        chosen = choose(array(scores), array(actions[:, 0]), temperature, costs, left)
        milliseconds = 1e3 * (time.perf_counter() - began)
        return Plan(array(states), array(actions), array(scores), chosen, milliseconds, costs)


def judge(objective: Objective, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Sums of a user's rewards over rollouts (B, H, d), (B, H, m), all but the last row, whose action leads beyond:
    (B,); non-finite is -inf.

    Raises:
        InputError: if the objective does not give a reward a step.
    """
    rewards = objective(latents, actions)
    if not isinstance(rewards, torch.Tensor) or rewards.shape != actions.shape[:-1]:
        found = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
        raise InputError(f"objective: must give a tensor of rewards {tuple(actions.shape[:-1])}, found {found}")
    score = rewards[:, :-1].sum(-1)
    return torch.where(score.isfinite(), score, -torch.inf)


def choose(
    scores: np.ndarray,
    actions: np.ndarray,
    temperature: float,
    costs: np.ndarray | None = None,
    budget: np.ndarray | None = None,
) -> np.ndarray:
    """Index (B,) of the candidate to follow, of N with scores (B, N) and first actions (B, N, m).

    The one whose first action is nearest to the others', each weighted by exp(score / temperature), the scores in
    standard deviations of the row (minimum Bayes risk: Kumar and Byrne 2004): the best of a few scores is mostly the
    ranker's luckiest error, what many good candidates agree on is not. At temperature 0 the best score.

    With costs (B, N) only those that cost at most the budget (B,); where there are none the cheapest. A candidate whose
    score or cost is not finite is chosen only if all are such.
    """
    sound = np.isfinite(scores)
    if costs is not None and budget is not None:
        sound = sound & np.isfinite(costs)
        fits = sound & (costs <= budget[:, None])
        cheapest = np.where(sound, costs, np.inf).argmin(1)
        sound = np.where(fits.any(1)[:, None], fits, np.arange(costs.shape[1]) == cheapest[:, None])
    if temperature == 0:
        return np.where(sound, scores, -np.inf).argmax(1)
    ranked = np.ma.masked_array(scores, ~sound)
    spread = np.maximum(ranked.std(1, keepdims=True).filled(0), 1e-12)
    weights = np.ma.exp((ranked - ranked.max(1, keepdims=True)) / (temperature * spread)).filled(0)
    distances = np.linalg.norm(actions[:, :, None] - actions[:, None], axis=-1)
    return np.where(sound, (distances * weights[:, None]).sum(-1), np.inf).argmin(1)
