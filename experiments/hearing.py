"""What planner and dynamics model know of held-out windows, and how much the actions should hear the dynamics model.

In the composition `heard` the planner's estimate of the actions gets the term E_D[u | z_t, u_t] - E_D[u | u_t] of the
dynamics model (docs/theory.md, section 8). The best weight of this term is the one with the lowest squared error.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments import pages
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.denoisers import hold
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.windows import Windows

WINDOWS = 512


@torch.inference_mode()
def known(pipeline: MPDiffuserPipeline, parts: Mapping[str, Episodes], levels: int) -> dict[str, Any]:
    """Errors of both models at each of `levels` noise levels, and the best weight of what is heard.

    Args:
        pipeline: its dynamics model was trained with `dynamics.hears`.
        parts: name -> held-out latent episodes.

    Returns:
        Name -> a list of {"sigma", "planner", "heard", "weight", "planner_states", "dynamics_states"}: the standard
        deviation of the noise, the mean squared errors of the actions without the term and with it, the best weight,
        and the mean squared errors of the states by either model. Errors are in variances of the planner's data.
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
        clean, seen = torch.cat([states, actions], -1), batch["mask"][..., None].clone()
        seen[:, 0] = 0  # the present state is known
        target = pipeline.target(pipeline.latents.denormalize(states[:, 0]), sampler.config.target)
        found[name] = []
        for level in (move.level for move in sampler.moves):
            drawn = torch.randn(clean.shape, generator=noise)
            noisy = sampler.schedule.add_noise(clean, drawn, torch.full((len(clean),), level))
            x = hold(noisy, states[:, 0])
            alone, (real, heard) = sampler.planner_x0(x, level, target), sampler.heard(x, level)
            term = mask * heard[..., states.shape[-1] :]
            missed = mask * (actions - alone[..., states.shape[-1] :])
            off = lambda drawn: float((seen * (drawn - states)).square().sum() / seen.sum() / states.shape[-1])  # noqa: B023, E731
            entries = float(mask.sum() * actions.shape[-1])
            error = lambda weight: float((missed - weight * term).square().sum()) / entries  # noqa: B023, E731
            found[name].append(
                {
                    "sigma": float(sampler.schedule.sigmas[level]),
                    "planner": error(0),
                    "heard": error(1),
                    "weight": float((missed * term).sum() / term.square().sum()),
                    "planner_states": off(alone[..., : states.shape[-1]]),
                    "dynamics_states": off(real),
                }
            )
    return found


SECTION = """## What the models know

Mean squared errors on held-out windows of demonstrations, and of play, which the planner never saw, in variances of the
demonstrations. Columns: standard deviation of the noise. The states, by the planner, and by the dynamics model that saw
play too:

{states}
The actions, by the planner, and with the term that `heard` adds ([Theory](theory.md), section 8), then the weight of
this term that gives the lowest error. A negative weight means that the term points the wrong way:

{actions}"""


def section(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """Two tables on the results of `known`, by task and training seed, each name -> levels; empty without results."""
    if not results:
        return ""
    states, actions = [], []
    for (task, seed), parts in results.items():
        for part, levels in parts.items():
            shown = {f"{at['sigma']:.2f}": at for at in levels}  # of equal ones the last
            about = [task, str(seed), part]
            states.append(
                [*about, *(f"{at['planner_states']:.3f}, {at['dynamics_states']:.3f}" for at in shown.values())]
            )
            cells = (f"{at['planner']:.3f}, {at['heard']:.3f}: {at['weight']:.2f}" for at in shown.values())
            actions.append([*about, *cells])
    columns = ["task", "training seed", "windows of", *shown]
    return SECTION.format(states=pages.table(columns, states), actions=pages.table(columns, actions))
