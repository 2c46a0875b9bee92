"""Scaling of actions; `get_state` is tested with the environments that use it."""

import numpy as np
import pytest

from envs.physics import ActionScaling
from mpdiffuser.errors import InputError


def test_actions_are_scaled_and_clipped() -> None:
    scaling = ActionScaling(np.array([-1.0, 2.0]), np.array([1.0, 6.0]))
    for action, expected in (([-1, -1], [-1, 2]), ([0, 0], [0, 4]), ([0.5, 1], [0.5, 6]), ([7, -7], [1, 2])):
        assert np.array_equal(scaling(np.array(action)), expected)


@pytest.mark.parametrize("action", [0.0, [0.0], [0.0, np.nan], [[0.0, 0.0]]])
def test_other_actions_are_refused(action: object) -> None:
    with pytest.raises(InputError, match=r"must be \(2,\) finite numbers"):
        ActionScaling(np.zeros(2), np.ones(2))(np.array(action))
