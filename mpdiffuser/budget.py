"""Cost budgets at run time: the remaining cost of each episode, and the safety margin."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.ranker import Ranker

PROBABILITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Allowance:
    """The remaining cost (B,) and the remaining steps (B,) of B episodes."""

    cost: torch.Tensor
    steps: torch.Tensor

    @property
    def rate(self) -> torch.Tensor:
        """Remaining cost per remaining step, (B,), at least 0."""
        return self.cost.clamp(min=0) / self.steps.clamp(min=1)


class Budget:
    """The cost budgets of a batch of episodes. The cost of each step reduces them.

    Args:
        limit: largest undiscounted cost of an episode.
        steps: largest number of decisions of an episode.
        margins: result of `calibrate`; None: no safety margin.
        probability: target probability that an episode stays within the limit. The safety margin is this quantile of
            the ranker's cost prediction errors on held-out data, plus the largest cost of a step.

    Raises:
        InputError: for a limit, a probability or margins that are not allowed, or a probability without margins.
    """

    def __init__(
        self, limit: float, steps: int, margins: dict[str, Any] | None = None, probability: float | None = None
    ) -> None:
        if not limit >= 0 or steps < 1:
            raise InputError(f"budget: must be at least 0 over at least 1 step, found {limit} over {steps}")
        if probability is not None and (margins is None or not 0 < probability < 1):
            raise InputError(
                f"budget.probability: must lie between 0 and 1, and needs a pipeline whose data have costs; "
                f"found {probability}"
            )
        self.limit, self.steps = float(limit), int(steps)
        self.margins: tuple[np.ndarray, np.ndarray] | None = None
        if margins is not None and probability is not None:
            self.margins = _margins(margins, probability)
        self.reset(1)

    def reset(self, count: int) -> None:
        """Start `count` new episodes."""
        self.spent, self.taken = np.zeros(count), np.zeros(count, int)

    def record_costs(self, costs: np.ndarray) -> None:
        """Subtract the costs (B,) of the executed step from the budgets."""
        self.spent += costs
        self.taken += 1

    def allowance(self, device: torch.device) -> Allowance:
        """The remaining budgets minus the safety margin, on `device`."""
        left = np.maximum(self.steps - self.taken, 1)
        cost = self.limit - self.spent - self.margin(left)
        return Allowance(*(torch.as_tensor(x, dtype=torch.float32, device=device) for x in (cost, left)))

    def margin(self, steps: np.ndarray) -> np.ndarray:
        """The safety margin (B,) for the remaining steps (B,)."""
        return np.zeros(len(steps)) if self.margins is None else np.interp(steps, *self.margins)


def _margins(found: Any, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of steps (n,) and their safety margins (n,), computed from the result of `calibrate`."""
    try:
        steps, levels, table, largest_step = (
            np.asarray(found[key], np.float64) for key in ("steps", "probabilities", "margins", "largest_step")
        )
        rising = all((np.diff(axis) > 0).all() and axis.ndim == 1 for axis in (steps, levels))
        sound = rising and table.shape == (len(steps), len(levels)) and len(steps) > 0 and largest_step.shape == ()
        sound = sound and bool(np.isfinite(table).all() and np.isfinite(largest_step))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"the pipeline's info.cost_margins: invalid ({found!r:.200}); train it again")
    return steps, np.array([np.interp(probability, levels, row) for row in table]) + largest_step


@torch.inference_mode()
def calibrate(ranker: Ranker, episodes: Episodes) -> dict[str, Any]:
    """Estimate the errors of the ranker's predicted costs on held-out episodes.

    The error of n consecutive steps is the sum of their costs minus the sum of their predicted costs. `calibrate` uses
    only segments whose predicted cost is at least half of the largest cost of a step. Most of the data have no cost
    nearby, so their errors do not represent the states in which a budget is spent.

    Returns:
        `steps` (n = 1, 2, 4, ... and the length of the longest episode), `probabilities` (levels of the quantiles),
        `margins` (the quantiles of the errors for each n, at least 0), and `largest_step` (the largest cost of a step).
    """
    rows = [torch.from_numpy(np.array(episodes[key], np.float32)) for key in ("observations", "actions")]
    predicted = ranker(*(part.to(ranker.device) for part in rows))["cost"].clamp(min=0).cpu().numpy().astype(np.float64)
    short = np.asarray(episodes["costs"], np.float64) - predicted
    least = episodes["costs"].max() / 2
    longest = int(episodes.lengths.max())
    steps = [n for n in (2**k for k in range(32)) if n < longest] + [longest]
    margins = []
    for n in steps:
        sums, expected = (_sums(each, episodes, n) for each in (short, predicted))
        some = sums[expected >= least] if (expected >= least).any() else sums
        margins.append(np.maximum(np.quantile(some, PROBABILITIES), 0).round(4).tolist())
    largest_step = round(float(episodes["costs"].max()), 4)
    return {"steps": steps, "probabilities": list(PROBABILITIES), "margins": margins, "largest_step": largest_step}


def _sums(values: np.ndarray, episodes: Episodes, n: int) -> np.ndarray:
    """Return the sums of values (M,) over every n consecutive steps of an episode."""
    found = []
    for e in range(len(episodes)):
        rows = episodes.rows(e)
        total = np.concatenate([[0], np.cumsum(values[rows.start : rows.stop - 1])])
        found.append(total[n:] - total[:-n])
    return np.concatenate(found)
