"""Mean, interquartile mean and their uncertainty for few episodes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rliable import metrics

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
    values = np.asarray(returns, np.float64).reshape(-1, 1)
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"returns: need at least one finite number, found {values.ravel().tolist()}")
    iqm = metrics.aggregate_iqm(values)
    low = high = iqm
    if len(values) > 1:
        low, high = _interval(values, seed)
    return {
        "mean": float(values.mean()),
        "standard_error": standard_error(values),
        "iqm": float(iqm),
        "iqm_interval": [float(low), float(high)],
    }


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values (E,) or (E, 1); 0 for a single value."""
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


def _interval(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the bounds (2,) of the IQM of values (E, 1)."""
    from rliable import library  # here, since it takes two seconds, which every command would wait for

    with _global_seed(seed):
        _, intervals = library.get_interval_estimates(
            {"x": values},
            lambda scores: np.array([metrics.aggregate_iqm(scores)]),
            reps=REPETITIONS,
            confidence_interval_size=LEVEL,
        )
    return intervals["x"][:, 0]


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and restore it at the end. rliable uses it and ignores its own `random_state`."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
