"""The plans of one observation as one graph: the sampler's loop, both models and the ranker in a single call.

The networks are so small that calling them level by level costs more than computing them. An engine runs the whole as
one graph in less time (`python -m benchmarks.planning`).
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpdiffuser.engines import graph, loaded
from mpdiffuser.plan import Plan
from mpdiffuser.sampler import SamplerConfig

if TYPE_CHECKING:
    from mpdiffuser.pipeline import MPDiffuserPipeline

LARGEST = 1e12  # of inputs; with larger ones the networks overflow
MOST_LEVELS = 10  # a graph holds all levels, so its size and the time to compile it grow with them


class PlanGraph(torch.nn.Module):
    """The plans of latents, without warm start, budget and objective.

    Args:
        pipeline: the loaded pipeline, on the CPU.
        config: the sampler settings.

    Attributes:
        sampler: in eager torch.
        noise_shape: (draws, K, H, d + m), the shape of the noise for one latent.
    """

    def __init__(self, pipeline: "MPDiffuserPipeline", config: SamplerConfig) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.sampler = pipeline.sampler(replace(config, engine="torch"))
        for model in (self.sampler.planner, self.sampler.dynamics):
            if model is not None:
                model.repeats = 1 if config.target_spread else config.candidates
        # registered, so that a tracer finds the weights
        parts = {**pipeline.components, **pipeline.other_models(), "forward": None}  # which no plan needs
        self.models = torch.nn.ModuleDict({k: part for k, part in parts.items() if isinstance(part, torch.nn.Module)})
        draws = 1 + sum(move.noise_std > 0 for move in self.sampler.moves)
        draws *= 1 + (config.composition == "sequential")
        self.noise_shape = (draws, *pipeline.noise_shape(config))

    def forward(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        goal: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the fields of a `Plan`: latents, actions, scores, weights.

        Args:
            latents: (B, d), decoded.
            noise: standard normal numbers, (B, *noise_shape).
            goal: as in the pipeline's call.
        """
        draws = iter(noise.unbind(1))
        plan = self.pipeline(latents, self.sampler, lambda: next(draws), goal=goal)
        return plan.latents, plan.actions, plan.scores, plan.weights


class PlanEngine:
    """Computes the plans of one latent by an engine. Compiling it takes some seconds.

    Args:
        pipeline, config: as in `PlanGraph`; config.engine is the engine.
        goal: whether the plans have a goal.

    Attributes:
        draws: the number of draws of noise for a plan.
    """

    def __init__(self, pipeline: "MPDiffuserPipeline", config: SamplerConfig, goal: bool) -> None:
        plans = PlanGraph(pipeline, config)
        d = pipeline.latents.config["dim"]
        self.draws = plans.noise_shape[0]
        names = ("latents", "noise", *["goal"] * goal)
        values = torch.zeros(1, d), torch.zeros(1, *plans.noise_shape), torch.zeros(1, d)
        outputs = ("plan_latents", "actions", "scores", "weights")
        self.sound = all(weight.isfinite().all() for weight in plans.parameters())
        self.run = loaded(graph(plans, dict(zip(names, values)), outputs, any_batch=False), config.engine)

    def __call__(self, latents: torch.Tensor, noise: torch.Tensor, goal: torch.Tensor | None = None) -> Plan:
        """Return the plan of latents (1, d) with noise (1, draws, K, H, d + m); the rest as in the pipeline's call."""
        began = time.perf_counter()
        known = [latents] if goal is None else [latents, goal]
        states, actions, scores, weights = self.run(latents, noise, *known[1:])
        # a runtime's clamp hides what is not finite, and eager torch does not
        if not (self.sound and all((part.abs() < LARGEST).all() for part in known)):
            states.fill_(torch.nan)
        return Plan(states, actions, scores, weights, 1e3 * (time.perf_counter() - began))
