"""Mean, interquartile mean and their uncertainty for few episodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from mpdiffuser.errors import InputError

REPETITIONS = 2000
LEVEL = 0.95


def summary(returns: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return the mean, its standard error, the interquartile mean (IQM), and its 95 % percentile-bootstrap interval.

    Args:
        returns: (E,), one for each episode. A single episode has standard error 0 and the interval [x, x].
        seed: of the bootstrap. Equal returns and seeds give equal results.

    Raises:
        InputError: if there is no episode, or a return is not finite.
    """
    values = np.asarray(returns, np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"returns: need at least one finite number, found {values.tolist()}")
    low = high = iqm = _iqm(values)
    if len(values) > 1:
        options = {"n_resamples": REPETITIONS, "confidence_level": LEVEL, "method": "percentile"}
        low, high = stats.bootstrap((values,), _iqm, rng=np.random.default_rng(seed), **options).confidence_interval
    return {
        "mean": float(values.mean()),
        "standard_error": standard_error(values),
        "iqm": float(iqm),
        "iqm_interval": [float(low), float(high)],
    }


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values (E,); 0 for a single value."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return the mean of values (E,) minus reference (E,), episode by episode, and its standard error.

    Episodes with the same seed have the same start and planner noise, so this error is mostly smaller than that of the
    difference of two means.

    Raises:
        InputError: if the numbers of episodes differ.
    """
    if len(values) != len(reference):
        raise InputError(f"returns: {len(values)} and {len(reference)} episodes cannot be paired")
    differences = np.subtract(values, reference)
    return {"mean": float(differences.mean()), "standard_error": standard_error(differences)}


def _iqm(values: np.ndarray, axis: int | None = None) -> Any:
    """Return the mean of the middle half of values along an axis (Agarwal et al. 2021)."""
    return stats.trim_mean(values, 0.25, axis=axis)
