"""Cost budgets at run time: what may still be spent, and how much of it to keep back."""

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
    """What each of B episodes may still spend: cost (B,), over its next steps (B,)."""

    cost: torch.Tensor
    steps: torch.Tensor

    @property
    def rate(self) -> torch.Tensor:
        """Cost a step, (B,)."""
        return self.cost.clamp(min=0) / self.steps.clamp(min=1)


class Budget:
    """The budgets of a batch of episodes, which shrink by the costs that were paid.

    Args:
        limit: the most that an episode may cost, undiscounted.
        steps: the most decisions an episode has.
        margins: of `calibrate`; None keeps nothing back.
        probability: wanted, of staying within the limit; what the ranker's cost predictions were short by on held-out
            data, at most, with this probability, is kept back, and the dearest step besides: its cost comes whole.

    Raises:
        InputError: for a limit, a probability or margins that cannot be, or a probability without margins.
    """

    def __init__(
        self, limit: float, steps: int, margins: dict[str, Any] | None = None, probability: float | None = None
    ) -> None:
        if not limit >= 0 or steps < 1:
            raise InputError(f"budget: must be at least 0 over at least 1 step, found {limit} over {steps}")
        if probability is not None and (margins is None or not 0 < probability < 1):
            raise InputError(
                f"budget.probability: must lie between 0 and 1, of a pipeline with costs; found {probability}"
            )
        self.limit, self.steps = float(limit), int(steps)
        self.margins: tuple[np.ndarray, np.ndarray] | None = None
        if margins is not None and probability is not None:
            self.margins = _margins(margins, probability)
        self.reset(1)

    def reset(self, count: int) -> None:
        """Begin `count` episodes."""
        self.spent, self.taken = np.zeros(count), np.zeros(count, int)

    def pay(self, costs: np.ndarray) -> None:
        """Costs (B,) of the step that was taken."""
        self.spent += costs
        self.taken += 1

    def allowance(self, device: torch.device) -> Allowance:
        left = np.maximum(self.steps - self.taken, 1)
        cost = self.limit - self.spent - self.margin(left)
        return Allowance(*(torch.as_tensor(x, dtype=torch.float32, device=device) for x in (cost, left)))

    def margin(self, steps: np.ndarray) -> np.ndarray:
        """What to keep back for the next steps (B,): (B,)."""
        return np.zeros(len(steps)) if self.margins is None else np.interp(steps, *self.margins)


def _margins(found: Any, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and what to keep back over as many (n,), from what `calibrate` gave."""
    try:
        steps, levels, table, dearest = (
            np.asarray(found[key], np.float64) for key in ("steps", "probabilities", "margins", "dearest")
        )
        rising = all((np.diff(axis) > 0).all() and axis.ndim == 1 for axis in (steps, levels))
        sound = rising and table.shape == (len(steps), len(levels)) and len(steps) > 0 and dearest.shape == ()
        sound = sound and bool(np.isfinite(table).all() and np.isfinite(dearest))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"the pipeline's info.cost_margins: not what training writes ({found!r:.200}); train it again")
    return steps, np.array([np.interp(probability, levels, row) for row in table]) + dearest


@torch.inference_mode()
def calibrate(ranker: Ranker, episodes: Episodes) -> dict[str, Any]:
    """How far costs came out above the ranker's predictions, over n steps on end of held-out episodes: quantiles of the
    sums, at least 0, for n = 1, 2, 4, ... up to the longest episode; and the cost of the dearest step.

    Of all such stretches those count that were expected to cost at least half of what a step may cost: most of the data
    is far from any cost, and says nothing of how predictions err where a budget is spent.
    """
    tensors = [torch.from_numpy(np.array(episodes[key], np.float32)) for key in ("observations", "actions")]
    predicted = ranker(*tensors)["cost"].clamp(min=0).numpy().astype(np.float64)
    short = np.asarray(episodes["costs"], np.float64) - predicted
    least = episodes["costs"].max() / 2
    longest = int(episodes.lengths.max())
    steps = [n for n in (2**k for k in range(32)) if n < longest] + [longest]
    margins = []
    for n in steps:
        sums, expected = (_sums(each, episodes, n) for each in (short, predicted))
        some = sums[expected >= least] if (expected >= least).any() else sums
        margins.append(np.maximum(np.quantile(some, PROBABILITIES), 0).round(4).tolist())
    dearest = round(float(episodes["costs"].max()), 4)
    return {"steps": steps, "probabilities": list(PROBABILITIES), "margins": margins, "dearest": dearest}


def _sums(values: np.ndarray, episodes: Episodes, n: int) -> np.ndarray:
    """Of values (M,) at each row, the sums over all n steps on end within an episode."""
    found = []
    for e in range(len(episodes)):
        rows = episodes.rows(e)
        total = np.concatenate([[0], np.cumsum(values[rows.start : rows.stop - 1])])
        found.append(total[n:] - total[:-n])
    return np.concatenate(found)
