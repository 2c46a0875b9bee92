"""Normalisers. They are fitted to the training data and saved with the models."""

from typing import Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin


class Normalizer(ModelMixin, ConfigMixin):
    """Maps each dimension to mean 0 and standard deviation 1, and stores the data's range. Always float32.

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
        """Fit mean, standard deviation and range to rows (M, dim). A constant dimension is centred but not scaled."""
        rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
        std = rows.std(0)
        mean = rows.mean(0)
        constant = std <= 1e-6 * np.maximum(1.0, np.abs(mean))
        std = np.where(constant, 1.0, std)
        for name, value in (("mean", mean), ("std", std), ("low", rows.min(0)), ("high", rows.max(0))):
            getattr(self, name).data = torch.as_tensor(value, dtype=torch.float32)
        return self

    def fit_last(self, rows: np.ndarray) -> Self:
        """Fit the last dimensions to rows (M, n), n at most dim. The other dimensions are not changed."""
        part = Normalizer(rows.shape[1]).fit(rows)
        for name in ("mean", "std", "low", "high"):
            getattr(self, name).data[-rows.shape[1] :] = getattr(part, name).data
        return self

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim) in normalised units."""
        return (x - self.mean) / self.std

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised (..., dim) -> (..., dim) in the data's units."""
        return x * self.std + self.mean

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest and the highest value of the data, each (dim,), in normalised units."""
        return self.normalize(self.low), self.normalize(self.high)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        return _move_only(self, fn)


class Marginals(ModelMixin, ConfigMixin):
    """Maps each dimension to its rank in the data: a uniform distribution with mean 0 and standard deviation 1.

    Targets use it. Returns differ by hundredths in one part of the data and by tenths in another, and the planner must
    resolve both differences. Always float32.

    Args:
        dim: number of dimensions.
        knots: number of points of each empirical distribution function, with linear interpolation.
    """

    @register_to_config
    def __init__(self, dim: int, knots: int = 257) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, knots).expand(dim, knots).clone()
        self.points = torch.nn.Parameter(line, requires_grad=False)  # ascending, (dim, knots)

    def fit(self, rows: np.ndarray) -> Self:
        """Fit the distributions to rows (M, dim) or (M,)."""
        rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
        values = np.quantile(rows, np.linspace(0, 1, self.config["knots"]), axis=0).T
        self.points.data = torch.as_tensor(values, dtype=torch.float32).contiguous()
        return self

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim) in [-sqrt(3), sqrt(3)]. Equal values of the data get their mean rank."""
        columns = x.movedim(x.dim() - 1, 0).reshape(x.shape[-1], -1).contiguous()
        last = self.points.shape[1] - 1
        if torch.onnx.is_in_onnx_export():  # ONNX has no search
            points, each = self.points[:, None], columns[..., None]
            edges = [(points < each).sum(-1), (points <= each).sum(-1)]
        else:
            edges = [torch.searchsorted(self.points, columns, right=right) for right in (False, True)]
        tied = (edges[0] + edges[1] - 1) / 2  # mean index of the knots that equal x
        upper = edges[0].clamp(1, last)
        low, high = self.points.gather(1, upper - 1), self.points.gather(1, upper)
        between = upper - 1 + ((columns - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        place = torch.where(edges[1] > edges[0], tied, between) / last
        return ((place - 0.5) * 12**0.5).view(x.shape[-1], *x.shape[:-1]).movedim(0, x.dim() - 1)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised (..., dim) -> (..., dim), within the data's range."""
        columns = x.movedim(x.dim() - 1, 0).reshape(x.shape[-1], -1)
        last = self.points.shape[1] - 1
        place = ((columns / 12**0.5 + 0.5) * last).clamp(0, last)
        below = place.nan_to_num().long().clamp(max=last - 1)
        low, high = self.points.gather(1, below), self.points.gather(1, below + 1)
        return (low + (place - below) * (high - low)).view(x.shape[-1], *x.shape[:-1]).movedim(0, x.dim() - 1)

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest and the highest value of the data, each (dim,), in normalised units."""
        return self.normalize(self.points[:, 0]), self.normalize(self.points[:, -1])

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        return _move_only(self, fn)


def _move_only(module, fn):  # type: ignore[no-untyped-def]
    """Move the parameters to the device of fn's result, but keep float32, since half precision rounds large means."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(fn(parameter.data).device)
    return module
