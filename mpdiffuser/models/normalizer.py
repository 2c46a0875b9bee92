"""Normalisation, fitted once and saved with the models."""

from typing import Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin


class Normalizer(ModelMixin, ConfigMixin):
    """Maps each dimension to mean 0, standard deviation 1; remembers the data's range. Always float32.

    Args:
        dim: number of dimensions.
    """

    @register_to_config
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.std = torch.nn.Parameter(torch.ones(dim), requires_grad=False)
        self.low = torch.nn.Parameter(torch.full((dim,), -1.0), requires_grad=False)
        self.high = torch.nn.Parameter(torch.full((dim,), 1.0), requires_grad=False)

    def fit(self, rows: np.ndarray) -> Self:
        """Take mean, deviation and range from rows (M, dim). A constant dimension is centred and left unscaled."""
        rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
        std = rows.std(0)
        mean = rows.mean(0)
        constant = std <= 1e-6 * np.maximum(1.0, np.abs(mean))
        std = np.where(constant, 1.0, std)
        for name, value in (("mean", mean), ("std", std), ("low", rows.min(0)), ("high", rows.max(0))):
            getattr(self, name).data = torch.as_tensor(value, dtype=torch.float32)
        return self

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.std + self.mean

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The data's range in normalised units, each (dim,)."""
        return self.normalize(self.low), self.normalize(self.high)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Follows the pipeline between devices, but stays float32: half precision would round large means away."""
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.to(fn(parameter.data).device)
        return self
