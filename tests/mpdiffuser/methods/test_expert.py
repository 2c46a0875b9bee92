"""The expert is a function of the true states."""

import numpy as np

from mpdiffuser.methods.expert import Expert


def test_it_acts_by_its_function(setup_of) -> None:
    policy = Expert.policy(setup_of("expert", expert=lambda states: 0.1 * states[:, :2]))
    policy.reset([0, 1])
    states = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_allclose(policy.act(states), [[0.1, -0.2], [0.4, 0.5]])
