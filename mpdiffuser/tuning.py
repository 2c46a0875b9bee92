"""The number of noise levels of a sampler, chosen from held-out data at the end of training.

More levels draw the learned distribution more accurately. The executed action is the mean of the candidates, and more
levels do not always make it more accurate: each level adds the error of one more estimate. The rule measures the error
of the executed actions on held-out windows, weighted like the planner's training windows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpdiffuser.methods import METHODS, Baseline
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.trainer import Data

LEVELS = (1, 2, 3, 4, 6, 8)
ROWS, BATCH = 1024, 64


def tune(
    pipeline: MPDiffuserPipeline,
    options: Mapping[str, Any],
    trained: Mapping[str, Any],
    held_out: Callable[[str], Data],
) -> None:
    """Choose the number of levels of all methods for which no option sets it, and record the choice in the pipeline.

    The record of each method is in `info["levels"]`. The planner's record holds for MPDiffuser too, since its actions
    come from the planner; its number is also in `sampler_defaults`.

    Args:
        pipeline: the trained pipeline.
        options: the configuration; its section `baselines` is used.
        trained: name -> trained model.
        held_out: returns the held-out `Windows` of a planner, given its name.
    """
    records = {}
    if pipeline.planner is not None and pipeline.sampler_defaults.steps is None:
        alone = replace(pipeline.sampler_defaults, composition="planner")
        records["planner"] = chosen_levels(pipeline, alone, held_out("planner"))
    for name, method in METHODS.items():
        if issubclass(method, Baseline) and all(recipe.name in trained for recipe in method.models):
            config = method.sampler_config(options["baselines"][name])
            if config.steps is None:
                baseline = method.join(pipeline, lambda model, _: trained[model])
                records[name] = chosen_levels(baseline, config, held_out(method.roles["planner"]))
    defaults = dict(pipeline.config["sampler_defaults"])
    if "planner" in records:
        defaults["steps"] = records["planner"]["levels"]
    pipeline.register_to_config(sampler_defaults=defaults, info={**pipeline.config["info"], "levels": records})


def chosen_levels(pipeline: MPDiffuserPipeline, config: SamplerConfig, windows: Data) -> dict[str, Any]:
    """Return the record of the rule: `levels`, the chosen number, and what it is based on.

    The rule chooses the smallest number whose error exceeds the lowest by at most one standard error of the paired
    difference (Breiman et al. 1984, section 3.4.3). With one held-out episode that error is unknown, and the rule
    chooses the smallest number.

    Args:
        pipeline: of the method, in memory or loaded.
        config: the other settings; its number of levels has no effect.
        windows: held-out `Windows` of the method's planner.

    Returns:
        JSON with `levels`, the numbers of windows and `episodes`, and for each number of levels `errors` (see
        `action_errors`) and `above_lowest`, the difference to the lowest error and its standard error (null: unknown).
    """
    batch, episodes = sample(windows)
    numbers = [n for n in LEVELS if config.warm_start <= n <= pipeline.schedule.config["num_levels"]]
    errors = {n: action_errors(pipeline, replace(config, steps=n), batch) for n in numbers}
    best = min(numbers, key=lambda n: float(errors[n].mean()))
    gaps = {n: errors[n] - errors[best] for n in numbers}
    above = {n: (float(gap.mean()), clustered_error(gap, episodes)) for n, gap in gaps.items()}
    return {
        "levels": next(n for n in numbers if above[n][0] <= above[n][1]),
        "windows": len(episodes),
        "episodes": len(np.unique(episodes)),
        "errors": {str(n): _rounded(errors[n].mean()) for n in numbers},
        "above_lowest": {str(n): [*map(_rounded, above[n])] for n in numbers},
    }


def sample(windows: Data) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return a batch of at most `ROWS` windows, always the same ones, and the numbers (B,) of their episodes."""
    count = min(ROWS, len(windows))
    indices = torch.from_numpy(np.random.default_rng(0).choice(len(windows), count, replace=False))
    return windows.batch(indices), windows.sources(indices)


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Return the standard error of the mean of values (n,) that are dependent within a cluster (Liang and Zeger 1986).

    The result is infinite for a single cluster.

    Args:
        values: (n,).
        clusters: (n,), the cluster of each value.
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    if len(sums) < 2:
        return math.inf
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


@torch.inference_mode()
def action_errors(pipeline: MPDiffuserPipeline, config: SamplerConfig, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return the mean squared error of the executed actions, in [-1, 1], in each window of a batch, (B,).

    Args:
        pipeline, config: as in `chosen_levels`.
        batch: of `Windows`. The first `chunk` actions of a plan are executed.
    """
    sampler, device = pipeline.sampler(config), pipeline.device
    latents = pipeline.latents.denormalize(batch["latents"][:, 0].to(device))
    logged = pipeline.actions.denormalize(batch["actions"][:, : config.chunk].to(device))
    mask = batch["action_mask"][:, : config.chunk].to(device)
    plans, goals = [], batch.get("goal", batch["latents"])
    for first in range(0, len(latents), BATCH):
        part = latents[first : first + BATCH]
        generators = [torch.Generator().manual_seed(first + row) for row in range(len(part))]
        goal = pipeline.latents.denormalize(goals[first : first + BATCH].to(device)) if pipeline.takes_goals else None
        plans.append(pipeline(part, sampler, generators, goal=goal).executed_actions[:, : config.chunk])
    error = (pipeline.action_scale.to_unit(torch.cat(plans)) - logged).square().mean(-1)
    return ((mask * error).sum(1) / mask.sum(1)).cpu().numpy()


def describe(record: Mapping[str, Any]) -> str:
    """Return words on a record of `chosen_levels`, such as "3 noise levels (...)"."""
    errors = ", ".join(f"{error:.4g} with {n}" for n, error in record["errors"].items())
    noun = "noise level" if record["levels"] == 1 else "noise levels"
    return (
        f"{record['levels']} {noun}, chosen by the error of the executed action on {record['windows']} held-out windows"
        f" of {record['episodes']} episodes: {errors}"
    )
