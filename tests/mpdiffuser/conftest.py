"""What tests of several modules share."""

import pytest
import torch


class Odd(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.weight * x)


@pytest.fixture
def odd_network() -> torch.nn.Module:
    """A network that no graph expresses."""
    return Odd()
