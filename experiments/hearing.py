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


def best_weight(missed: torch.Tensor, term: torch.Tensor) -> dict[str, float]:
    """Least squares with one term.

    Args:
        missed: what an estimate lacks, (B, H, m), 0 where nothing is known. term: what is added to it, likewise.

    Returns:
        `planner` and `heard`, the sum of squares that is left without the term and with it, and `weight`, the weight of
        the term that leaves least.
    """
    left = {"planner": missed.square().sum(), "heard": (missed - term).square().sum()}
    left["weight"] = (missed * term).sum() / term.square().sum()
    return {name: float(value) for name, value in left.items()}


def windows_of(pipeline: MPDiffuserPipeline, episodes: Episodes) -> dict[str, torch.Tensor]:
    """A batch of at most `WINDOWS` windows of latent episodes, always the same ones."""
    targets = np.zeros((len(episodes["actions"]), pipeline.planner.config["condition_dim"]), np.float32)
    normalizers = pipeline.latents, pipeline.actions, pipeline.condition
    windows = Windows(episodes, targets, pipeline.planner.config["horizon"], *normalizers)
    count = min(WINDOWS, len(windows))
    return windows.batch(torch.from_numpy(np.random.default_rng(0).choice(len(windows), count, replace=False)))


@torch.inference_mode()
def known(pipeline: MPDiffuserPipeline, episodes: Episodes, levels: int) -> list[dict[str, float]]:
    """Errors of both models at each of `levels` noise levels, and the best weight of what is heard.

    Args:
        pipeline: its dynamics model was trained with `dynamics.hears`.
        episodes: held-out latent episodes.

    Returns:
        For each level `sigma`, the standard deviation of the noise; `planner` and `heard`, the mean squared errors of
        the actions without the term and with it; the best `weight`; `planner_states` and `dynamics_states`, the mean
        squared errors of the states by either model. Errors are in variances of the planner's data.
    """
    sampler = pipeline.sampler(replace(pipeline.sampler_defaults, composition="heard", steps=levels))
    batch, noise = windows_of(pipeline, episodes), torch.Generator().manual_seed(0)
    states, actions, acted = batch["latents"], batch["actions"], batch["action_mask"][..., None]
    clean, seen, d = torch.cat([states, actions], -1), batch["mask"][..., None].clone(), states.shape[-1]
    seen[:, 0] = 0  # the present state is known
    target = pipeline.target(pipeline.latents.denormalize(states[:, 0]), sampler.config.target)
    found = []
    for level in (move.level for move in sampler.moves):
        drawn = torch.randn(clean.shape, generator=noise)
        x = hold(sampler.schedule.add_noise(clean, drawn, torch.full((len(clean),), level)), states[:, 0])
        alone, (real, term) = sampler.planner_x0(x, level, target), sampler.heard(x, level)
        at = best_weight(acted * (actions - alone[..., d:]), acted * term[..., d:])
        at |= {name: at[name] / float(acted.sum() * actions.shape[-1]) for name in ("planner", "heard")}
        for name, guess in (("planner_states", alone[..., :d]), ("dynamics_states", real)):
            at[name] = float((seen * (guess - states)).square().sum() / (seen.sum() * d))
        found.append({"sigma": float(sampler.schedule.sigmas[level]), **at})
    return found


SECTION = """## What the models know

Mean squared errors on held-out windows of demonstrations, and of play, which the planner never saw, in variances of the
demonstrations. States beyond the range of the demonstrations are set to its edge, as in training. Columns: standard
deviation of the noise. The states, by the planner, and by the dynamics model that saw play too:

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
