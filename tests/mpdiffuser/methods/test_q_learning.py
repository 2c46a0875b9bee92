"""The methods with twin action values: their settings, and how they act."""

from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS
from mpdiffuser.methods.q_learning import QLearning

FOUND: list[Any] = [method for method in METHODS.values() if issubclass(method, QLearning)]


def test_the_methods() -> None:
    assert [method.name for method in FOUND] == ["iql", "td3_bc", "rebrac"]
    assert all(method.kind.method == method.name for method in FOUND)


@pytest.mark.parametrize("method", FOUND)
@pytest.mark.parametrize(("name", "value"), [("target_rate", 0.0), ("target_rate", 5.0), ("hidden", 0)])
def test_a_rate_or_a_width_that_cannot_be(method: Any, name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"baselines\.{method.name}\.{name}: must be .*found {value}"):
        method.check_settings({**method.settings, name: value})


@pytest.mark.parametrize("method", FOUND)
def test_it_acts_by_its_network(setup_of, method: Any) -> None:
    setup = setup_of(method.name)
    network = setup.model(method.name, method.kind)
    observations = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    policy = method.policy(setup)
    policy.reset(range(4))
    with torch.no_grad():
        np.testing.assert_array_equal(policy.act(observations), network(torch.from_numpy(observations)))
    assert network.config["discount"] == 1 - 3 / 12  # the longest episode has 12 decisions
