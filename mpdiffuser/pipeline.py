"""The pipeline: everything that acting needs, in one folder of safetensors and JSON."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mpdiffuser.files import write_manifest
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.safe_loading import check_pipeline
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule


@dataclass
class Plan:
    """Candidate plans, in the encoder's own space.

    latents (B, N, H, d), actions (B, N, H, m), scores (B, N), chosen (B,) index of the best candidate, plan_ms the time
    it took to draw and rank them all.
    """

    latents: np.ndarray
    actions: np.ndarray
    scores: np.ndarray
    chosen: np.ndarray
    plan_ms: float

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
        encoder: observations to latents: `history`, `features(observations)`, `forward(features)` (see `Controller`).
        latents, actions: fitted normalisers; condition: the targets' fitted marginals.
        info: what the pipeline was trained on (task, rendering, ...); JSON.
    """

    _optional_components = ["decoder"]  # noqa: RUF012  diffusers adds it to a list

    def __init__(
        self,
        encoder: ModelMixin,
        latents: Normalizer,
        actions: Normalizer,
        condition: Marginals,
        planner: Planner,
        dynamics: Dynamics,
        ranker: Ranker,
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
        bounds = [torch.cat(pair) for pair in zip(self.latents.bounds(), self.actions.bounds())]
        return Sampler(self.planner, self.dynamics, self.schedule, bounds[0], bounds[1], config)

    def target(self, latents: torch.Tensor, level: float) -> torch.Tensor:
        """The condition (B, c) to ask for at latents (B, d): the return that the share `level` of the data's outcomes
        from there stays below, and the least cost_to_go of the data, where it has costs.

        A fixed wish is out of reach in most states, and a planner asked for what it never saw draws nonsense.
        """
        low, _ = self.condition.bounds()
        wish = self.condition.denormalize(low).expand(len(latents), -1).clone()
        wish[:, 0] = self.ranker.quantile(latents, level)
        return self.condition.normalize(wish)

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

    @torch.inference_mode()
    def __call__(
        self,
        latents: torch.Tensor,
        sampler: Sampler,
        generators: list[torch.Generator],
        last: tuple[torch.Tensor, torch.Tensor] | None = None,
        goal: torch.Tensor | None = None,
        committed: torch.Tensor | None = None,
    ) -> Plan:
        """Draw N candidate plans for each latent, score them, choose.

        Args:
            latents: z_0, (B, d), in the encoder's own space.
            sampler: from `sampler(config)`; reused between calls.
            generators: one a row, so that a row's plan does not depend on the batch it sits in.
            last: shifted last plan to warm-start from: latents (B, H, d) and actions (B, H, m).
            goal: the plans' last latent, (B, d), where it is known already.
            committed: the plans' first actions, (B, K, m), where they are decided already.
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
        wish = self.target(latents, config.target).repeat_interleave(n, 0)
        x = sampler(present, wish, noise, start, spread(self.latents, goal), spread(self.actions, committed))
        d = latents.shape[-1]
        states = self.latents.denormalize(x[..., :d])
        actions = self.actions.denormalize(x[..., d:]).clamp(-1, 1)
        scores = self.ranker.scores(states, actions)
        array = lambda tensor: tensor.unflatten(0, (batch, n)).cpu().numpy()  # noqa: E731
        scores_array = array(scores)
        return Plan(
            array(states), array(actions), scores_array, scores_array.argmax(1), 1e3 * (time.perf_counter() - began)
        )
