"""The pipeline: everything that acting needs, in one folder of safetensors and JSON."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging

from mpdiffuser.budget import Allowance
from mpdiffuser.engines import Prepared, compiled, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_manifest
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.safe_loading import FORMAT_VERSION, check_pipeline
from mpdiffuser.sampler import TEMPERATURE, Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule

# decoded latents (B, H, d) and actions (B, H, m) -> the reward of each step (B, H); -inf forbids a plan
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Plan:
    """Candidate plans, in the encoder's own space, on the pipeline's device.

    latents (B, N, H, d), actions (B, N, H, m), scores (B, N), chosen (B,) index of the candidate to follow, plan_ms the
    milliseconds to draw and rank all candidates; costs (B, N), expected over the rest of the episode, under a budget.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    scores: torch.Tensor
    chosen: torch.Tensor
    plan_ms: float
    costs: torch.Tensor | None = None

    @property
    def best_latents(self) -> torch.Tensor:
        """The chosen candidate's latents, (B, H, d)."""
        return self.latents[torch.arange(len(self.chosen)), self.chosen]

    @property
    def best_actions(self) -> torch.Tensor:
        """The chosen candidate's actions, (B, H, m)."""
        return self.actions[torch.arange(len(self.chosen)), self.chosen]


class MPDiffuserPipeline(DiffusionPipeline):
    """Encoder, normalisers, planner, dynamics model, ranker, schedule and, to look at plans, a decoder.

    Args:
        encoder: observations to latents, with `history`, `sees_pixels`, `features(observations)` and
            `forward(features, actions)` (see `LatentHistory`). An encoder of pixels computes its features with
            `frame_net`.
        latents, actions: fitted normalisers; condition: the targets' fitted marginals.
        sampler_defaults: the settings that plans are drawn with unless a controller is given others, as a dict of
            `SamplerConfig`'s fields.
        info: record of the training data (task, environment, observation, ...); JSON.
        format_version: of the folder; another one than this code's is refused when a folder is loaded.
    """

    sampler_class: ClassVar[type[Sampler]] = Sampler
    # a folder that was trained for a baseline alone holds none of these
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
            decoder=decoder,
        )
        defaults = asdict(SamplerConfig(**sampler_defaults or {}))
        self.register_to_config(sampler_defaults=defaults, info=info or {}, format_version=format_version)

    @property
    def sampler_defaults(self) -> SamplerConfig:
        """The settings that plans are drawn with unless a controller is given others."""
        return SamplerConfig(**self.config["sampler_defaults"])

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the components, as diffusers does, and the manifest that `from_pretrained` verifies."""
        super().save_pretrained(folder, safe_serialization=True, **options)
        write_manifest(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """A pipeline from a folder. The folder may come from a stranger: nothing in it is executed.

        Raises:
            InputError: unless the folder is a whole pipeline folder of this format version (`check_pipeline`).
        """
        check_pipeline(Path(folder))
        logging.disable_progress_bar()  # it takes a third of a second
        return super().from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options)

    def sampler(self, config: SamplerConfig) -> Sampler:
        """A sampler with these settings; its engine and temperature are set where `config` leaves them open.

        Raises:
            InputError: if the engine is not installed, or the composition needs a dynamics model and there is none.
        """
        temperature = TEMPERATURE if config.temperature is None else config.temperature
        config = replace(config, engine=resolved(config.engine, self.device), temperature=temperature)
        bounds = [torch.cat(pair) for pair in zip(self.latents.bounds(), self.actions.bounds())]
        planner, dynamics = (self._prepared(name, config) for name in ("planner", "dynamics"))
        return self.sampler_class(planner, dynamics, self.schedule, bounds[0], bounds[1], config, **self.other_models())

    def other_models(self) -> dict[str, Any]:
        """Further models that the sampler draws with, by name; a baseline may have some."""
        return {}

    def _prepared(self, name: str, config: SamplerConfig) -> Any:
        model = getattr(self, name)
        if model is None:
            return None
        levels = self.schedule.grid(config.steps, config.grid)
        return Prepared(model, levels, None if config.engine == "torch" else self.network(name, config.engine))

    def frame_encoder(self, engine: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The encoder's `features`. An encoder of pixels runs on the engine, where that supports its network, and
        always in float32: no level of noise corrects an error in the present latent."""
        if not self.sees_pixels:
            return self.encoder.features
        try:
            return self.network("frame_net", resolved(engine, self.device).removesuffix("_bf16"))
        except InputError:
            return self.encoder.features

    @property
    def sees_pixels(self) -> bool:
        """Whether the encoder takes pictures of a recorded shape."""
        return self.encoder.sees_pixels and "observation" in self.config["info"]

    def network(self, name: str, engine: str) -> Callable[..., torch.Tensor]:
        """One of `networks` on an engine (of a denoiser, its `denoise`); compiled once for its weights."""
        model, example = self.networks()[name]
        cache = self.__dict__.setdefault("_engines", {})
        if cache.get((name, engine), (None,))[0] is not model:
            if name == "frame_net":
                run = compiled(model, engine, example)
            else:
                x, levels, *rest = example
                modulation = model.modulation(levels, x[:, 0, : model.config["latent_dim"]], *rest).detach()
                run = compiled(model, engine, (x, modulation), "denoise")
            cache[name, engine] = (model, run)
        return cache[name, engine][1]

    def networks(self) -> dict[str, tuple[Any, tuple[torch.Tensor, ...]]]:
        """The networks that engines compute: the planner, the dynamics model and the encoder's frame_net, where the
        pipeline has them. Each comes with inputs of its forward pass, a batch of 2."""
        denoisers = {name: getattr(self, name) for name in ("planner", "dynamics")}
        found = {name: (model, model.example()) for name, model in denoisers.items() if model is not None}
        if self.sees_pixels:
            frames = torch.zeros(2, *self.config["info"]["observation"]["shape"], dtype=torch.uint8)
            found["frame_net"] = (self.encoder.frame_net, (frames,))
        return found

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The condition (B, c) at latents (B, d): the expectile of `level`, one or (B,), of the data's returns from
        there, and the cost_to_go (B,) where there are costs.

        One fixed target would be out of reach in most states, and the planner has never seen such targets there.
        """
        target = [self.ranker.expectile(latents, level, cost_to_go)]
        return self.condition.normalize(torch.stack(target if cost_to_go is None else [*target, cost_to_go], -1))

    def affordable(self, latents: torch.Tensor, allowance: Allowance | None) -> torch.Tensor | None:
        """The cost_to_go (B,) to ask for at latents (B, d); without an allowance, the lowest of the data.

        Raises:
            InputError: for an allowance where the data had no costs.
        """
        if self.ranker.cost_scale is None:
            if allowance is not None:
                raise InputError("budget: this pipeline's data had no costs, so it cannot predict any")
            return None
        low, _ = self.ranker.cost_scale.bounds()
        least = self.ranker.cost_scale.denormalize(low).expand(len(latents))
        return least if allowance is None else allowance.rate.maximum(least)

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B N,) of decoded states (B N, H, d) and actions (B N, H, m), at cost_to_go (B N,) where there are
        costs."""
        return self.ranker.scores(states, actions, cost_to_go)

    def within_deadline(self, config: SamplerConfig, latents: torch.Tensor, repeats: int = 5) -> SamplerConfig:
        """`config` with the largest number of levels, 1 to config.steps, whose plans for a batch like latents (B, d)
        meet config.deadline_ms. Plans with one level and with all levels are timed now; medians of `repeats`."""

        def milliseconds(levels: int) -> float:
            sampler = self.sampler(replace(config, steps=levels, warm_start=0))
            generators = [torch.Generator().manual_seed(0) for _ in latents]
            return float(np.median([self(latents, sampler, generators).plan_ms for _ in range(repeats + 1)][1:]))

        if not config.deadline_ms or config.steps == 1:
            return config
        one, all_levels = milliseconds(1), milliseconds(config.steps)
        per_level = max((all_levels - one) / (config.steps - 1), 1e-3)
        affordable = 1 + math.floor((config.deadline_ms - one) / per_level)
        steps = min(max(affordable, 1), config.steps)
        return replace(config, steps=steps, warm_start=min(config.warm_start, steps))

    def _objective_gradient(self, objective: Objective, scale: float, x: torch.Tensor) -> torch.Tensor:
        """Gradient of scale times the objective's sum at clean normalised x (B, H, d + m): like x."""
        d = self.latents.config["dim"]
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            rewards = total_reward(
                objective, self.latents.denormalize(x[..., :d]), self.actions.denormalize(x[..., d:])
            )
            (gradient,) = torch.autograd.grad(scale * rewards[rewards.isfinite()].sum(), x)
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
        """Draw N candidate plans for each latent, score them, choose one.

        Args:
            latents: z_0, (B, d), in the encoder's own space.
            sampler: from `sampler(config)`; reused between calls.
            generators: one for each row, so that a row's plan does not depend on its batch.
            last: shifted last plan to warm-start from: latents (B, H, d) and actions (B, H, m).
            goal: the plans' last latent, (B, d), where it is fixed.
            committed: the plans' first actions, (B, K, m), where they are fixed.
            allowance: remaining budget of each row; a candidate within it is chosen, the cheapest if none is.
            objective: ranks the candidates in place of the ranker; the best one is chosen.
        """
        began = time.perf_counter()
        config, batch, n = sampler.config, len(latents), sampler.config.candidates
        c = self.planner.config
        shape = (n, c["horizon"], c["latent_dim"] + c["action_dim"])
        device = latents.device

        def noise() -> torch.Tensor:
            return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)

        def repeated(normalizer: Normalizer, known: torch.Tensor | None) -> torch.Tensor | None:
            return None if known is None else normalizer.normalize(known).repeat_interleave(n, 0)

        present = self.latents.normalize(latents).repeat_interleave(n, 0)
        start = None
        if last is not None and config.warm_start:
            start = torch.cat([self.latents.normalize(last[0]), self.actions.normalize(last[1])], -1)
            start = start.repeat_interleave(n, 0)
        cost_to_go = self.affordable(latents, allowance)
        cost_to_go = None if cost_to_go is None else cost_to_go.repeat_interleave(n, 0)
        levels = config.target + config.target_spread * torch.linspace(-1, 1, n, device=device)
        condition = self.target(latents.repeat_interleave(n, 0), levels.clamp(0, 1).repeat(batch), cost_to_go)
        gradient = None
        if objective is not None and config.objective_scale:
            gradient = partial(self._objective_gradient, objective, config.objective_scale)
        goal, committed = repeated(self.latents, goal), repeated(self.actions, committed)
        x = sampler(present, condition, noise, start, goal, committed, gradient)
        d = latents.shape[-1]
        states = self.latents.denormalize(x[..., :d])
        actions = self.actions.denormalize(x[..., d:]).clamp(-1, 1)
        scores = (
            self.scores(states, actions, cost_to_go) if objective is None else total_reward(objective, states, actions)
        )
        costs = limits = None
        if allowance is not None:
            left_steps, rate = (part.repeat_interleave(n) for part in (allowance.steps, allowance.rate))
            costs = self.ranker.expected_cost(states, actions, left_steps, rate).unflatten(0, (batch, n))
            limits = allowance.cost.cpu().numpy()
        states, actions, scores = (part.unflatten(0, (batch, n)) for part in (states, actions, scores))
        temperature = 0.0 if objective is not None else config.rank_temperature
        ranked = (scores.cpu().numpy(), actions[:, :, 0].cpu().numpy(), temperature)
        chosen = choose(*ranked, None if costs is None else costs.cpu().numpy(), limits)
        milliseconds = 1e3 * (time.perf_counter() - began)
        return Plan(states, actions, scores, torch.from_numpy(chosen).to(device), milliseconds, costs)


def total_reward(objective: Objective, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Sums (B,) of a user's rewards over rollouts (B, H, d), (B, H, m), without the last row, whose action leads beyond
    the plan; non-finite sums are -inf.

    Raises:
        InputError: if the objective does not give one reward for each step.
    """
    rewards = objective(latents, actions)
    if not isinstance(rewards, torch.Tensor) or rewards.shape != actions.shape[:-1]:
        found = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
        raise InputError(f"objective: must return a tensor of rewards {tuple(actions.shape[:-1])}, found {found}")
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

    The candidate whose first action is nearest to the others', each weighted by exp(score / temperature) with scores in
    standard deviations of the row (minimum Bayes risk: Kumar and Byrne 2004). The best of a few scores is often an
    error of the ranker; an action that many good candidates share is not. At temperature 0, the candidate of the best
    score.

    With costs (B, N), only candidates that cost at most the budget (B,), or the cheapest if there is none. A candidate
    with a non-finite score or cost is chosen only if all are such.
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
    deviation = np.maximum(ranked.std(1, keepdims=True).filled(0), 1e-12)
    weights = np.ma.exp((ranked - ranked.max(1, keepdims=True)) / (temperature * deviation)).filled(0)
    distances = np.linalg.norm(actions[:, :, None] - actions[:, None], axis=-1)
    return np.where(sound, (distances * weights[:, None]).sum(-1), np.inf).argmin(1)
