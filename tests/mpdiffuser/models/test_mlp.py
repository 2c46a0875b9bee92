"""Perceptrons."""

import torch

from mpdiffuser.models.mlp import mlp


def test_shapes_and_that_inputs_of_any_scale_are_kept_in_hand() -> None:
    """Layer norm after each hidden layer: an input a thousand times larger gives nearly the same hidden features."""
    torch.manual_seed(0)
    network = mlp(3, 16, 2)
    x = torch.randn(4, 5, 3)
    assert network(x).shape == (4, 5, 2)
    large = network(1e3 * x)
    torch.testing.assert_close(network(1e6 * x), large, rtol=1e-2, atol=1e-2)
    assert [type(part).__name__ for part in network].count("LayerNorm") == 2
