"""How much the actions should hear the dynamics model: measured on held-out windows.

In the composition `heard` the planner's estimate of the actions gets the term E_D[u | z_t, u_t] - E_D[u | u_t] of the
dynamics model (docs/theory.md, section 8). The best weight of this term is the one with the lowest squared error.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.models.denoisers import hold
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.windows import Windows

WINDOWS = 512


@torch.inference_mode()
def held_out_weights(pipeline: MPDiffuserPipeline, parts: Mapping[str, Episodes], levels: int) -> dict[str, Any]:
    """Errors of the estimated actions at each of `levels` noise levels, and the best weight of what is heard.

    Args:
        pipeline: its dynamics model was trained with `dynamics.hears`.
        parts: name -> held-out latent episodes.

    Returns:
        Name -> a list of {"sigma", "planner", "heard", "weight"}: the standard deviation of the noise, the mean squared
        errors in variances of the planner's data without the term and with it, and the best weight.
    """
    sampler = pipeline.sampler(replace(pipeline.sampler_defaults, composition="heard", steps=levels))
    found: dict[str, Any] = {}
    for name, episodes in parts.items():
        random, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
        targets = np.zeros((len(episodes["actions"]), pipeline.planner.config["condition_dim"]), np.float32)
        normalizers = pipeline.latents, pipeline.actions, pipeline.condition
        windows = Windows(episodes, targets, pipeline.planner.config["horizon"], *normalizers)
        chosen = random.choice(len(windows), min(WINDOWS, len(windows)), replace=False)
        batch = windows.batch(torch.from_numpy(chosen))
        states, actions, mask = batch["latents"], batch["actions"], batch["action_mask"][..., None]
        clean = torch.cat([states, actions], -1)
        target = pipeline.target(pipeline.latents.denormalize(states[:, 0]), sampler.config.target)
        found[name] = []
        for level in (move.level for move in sampler.moves):
            drawn = torch.randn(clean.shape, generator=noise)
            noisy = sampler.schedule.add_noise(clean, drawn, torch.full((len(clean),), level))
            x = hold(noisy, states[:, 0])
            alone = sampler.planner_x0(x, level, target)[..., states.shape[-1] :]
            term = mask * sampler.heard(x, level)[1][..., states.shape[-1] :]
            missed = mask * (actions - alone)
            entries = float(mask.sum() * actions.shape[-1])
            error = lambda weight: float((missed - weight * term).square().sum()) / entries  # noqa: B023, E731
            found[name].append(
                {
                    "sigma": float(sampler.schedule.sigmas[level]),
                    "planner": error(0),
                    "heard": error(1),
                    "weight": float((missed * term).sum() / term.square().sum()),
                }
            )
    return found
