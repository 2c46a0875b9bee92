"""Observations of one environment or of many: an array, or a dict of arrays."""

from collections.abc import Sequence

import numpy as np

Observation = np.ndarray | dict[str, np.ndarray]
Observed = str | tuple[str, ...]  # what an environment is asked for: "frames", "states", "both", or names


def stack(observations: Sequence[Observation]) -> Observation:
    """Observations (...) stacked along a new first axis, (N, ...)."""
    if isinstance(observations[0], dict):
        return {key: np.stack([each[key] for each in observations]) for key in observations[0]}  # type: ignore[index]
    return np.stack(observations)  # type: ignore[arg-type]


def concatenate(batches: Sequence[Observation]) -> Observation:
    """Batches of observations (N, ...) joined along their first axis."""
    if isinstance(batches[0], dict):
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}  # type: ignore[index]
    return np.concatenate(batches)  # type: ignore[arg-type]


def first(observations: Observation) -> Observation:
    """The first of observations (N, ...), (1, ...)."""
    if isinstance(observations, dict):
        return {key: values[:1] for key, values in observations.items()}
    return observations[:1]


def picture(observations: Observation) -> np.ndarray | None:
    """The pictures (N, height, width, 3) among observations (N, ...), of several cameras those of the first.

    None if there are none.
    """
    parts = observations.values() if isinstance(observations, dict) else (observations,)
    return next((values for values in parts if values.dtype == np.uint8), None)
