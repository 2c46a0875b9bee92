"""Observations of many environments."""

import numpy as np

from envs.observations import concatenate, stack


def test_stack_and_concatenate() -> None:
    one, two = np.zeros((3,)), np.ones((3,))
    assert np.array_equal(stack([one, two]), [[0, 0, 0], [1, 1, 1]])
    both = stack([{"states": one, "frames": one[:2]}, {"states": two, "frames": two[:2]}])
    assert isinstance(both, dict) and both["states"].shape == (2, 3) and both["frames"].shape == (2, 2)
    assert np.array_equal(concatenate([one, two]), [0, 0, 0, 1, 1, 1])
    joined = concatenate([both, both])
    assert isinstance(joined, dict) and joined["states"].shape == (4, 3)
    assert np.array_equal(joined["frames"], np.concatenate([both["frames"]] * 2))
