"""The denoisers' network: a U-Net over time with feature-wise modulation (Janner et al. 2022; Perez et al. 2018)."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv1d

from mpdiffuser.errors import InputError


class LevelEmbedding(nn.Module):
    """Embeds noise levels: sinusoids, then a two-layer perceptron."""

    frequencies: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2) / (dim // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        """Levels (B,) -> (B, dim)."""
        angles = levels[:, None].to(self.frequencies.dtype) * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], -1))


def conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Build a convolution with group norm: (B, inputs, H) -> (B, outputs, H)."""
    return nn.Sequential(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(8, outputs))


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection and feature-wise modulation.

    `film` maps an embedding (B, E) to a scale and a shift (B, 2 outputs).
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, kernel: int) -> None:
        super().__init__()
        self.first = conv_block(inputs, outputs, kernel)
        self.second = conv_block(outputs, outputs, kernel)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.activation = nn.SiLU()

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """x (B, inputs, H), modulation (B, 2 outputs) -> (B, outputs, H)."""
        scale, shift = modulation[..., None].chunk(2, 1)
        hidden = self.activation(self.first(x) * (1 + scale) + shift)
        return self.activation(self.second(hidden)) + self.skip(x)


class Grow(nn.ConvTranspose1d):
    """Transposed convolution with kernel 4: (B, C, H) -> (B, C, 2 H).

    An exported graph computes the even and the odd rows with an ordinary convolution. This is three times as fast in
    OpenVINO, but not in torch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, C, H) -> (B, C, 2 H)."""
        if not torch.onnx.is_in_onnx_export():
            return super().forward(x)
        assert self.bias is not None
        w = self.weight.transpose(0, 1)
        none = torch.zeros_like(w[..., :1])
        even = torch.cat([w[..., 3:], w[..., 1:2], none], -1)  # y[2 i] = w[3] x[i - 1] + w[1] x[i]
        odd = torch.cat([none, w[..., 2:3], w[..., :1]], -1)  # y[2 i + 1] = w[2] x[i] + w[0] x[i + 1]
        both = conv1d(x, torch.cat([even, odd]), self.bias.repeat(2), padding=1)
        return both.unflatten(1, (2, -1)).permute(0, 2, 3, 1).flatten(2)


class TemporalUNet(nn.Module):
    """A U-Net over time for trajectories (B, H, inputs). Each block has a scale and a shift from an embedding (B, E).

    Args:
        inputs, outputs: numbers of channels.
        width: number of channels of the first level, a multiple of 8 (the number of groups of the group norm).
        multipliers: number of channels of each level relative to `width`. 2^(levels - 1) must divide H.
        embedding: E, the dimension of the embedding.
        kernel: size of the convolutions' kernels, odd.

    Raises:
        InputError: if the width is not a multiple of 8.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        embedding: int = 64,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if width % 8:
            raise InputError(f"width: must be a multiple of 8, found {width}")
        widths = [width * m for m in multipliers]
        block = lambda a, b: ResidualBlock(a, b, embedding, kernel)  # noqa: E731
        self.enter = nn.Conv1d(inputs, width, 1)
        self.down = nn.ModuleList([block(a, b) for a, b in zip([width, *widths[:-1]], widths)])
        self.shrink = nn.ModuleList([nn.Conv1d(c, c, 3, stride=2, padding=1) for c in widths[:-1]])
        self.middle = block(widths[-1], widths[-1])
        self.grow = nn.ModuleList([Grow(c) for c in widths[:0:-1]])
        self.up = nn.ModuleList([block(c + skip, skip) for c, skip in zip(widths[:0:-1], widths[-2::-1])])
        last = nn.Conv1d(widths[0], outputs, 1)
        nn.init.zeros_(last.weight)
        self.leave = nn.Sequential(conv_block(widths[0], widths[0], kernel), nn.SiLU(), last)

    @property
    def blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in the order of `modulation`."""
        return [*self.down, self.middle, *self.up]  # type: ignore[list-item]

    def modulation(self, embedding: torch.Tensor) -> torch.Tensor:
        """Embedding (B, E) -> scales and shifts of all blocks (B, F)."""
        return torch.cat([block.film(embedding) for block in self.blocks], -1)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """x (B, H, inputs), modulation (B, F) -> (B, H, outputs)."""
        hidden, skips = self.enter(x.transpose(1, 2)), []
        parts = list(modulation.split([block.film.out_features for block in self.blocks], 1))
        for i, block in enumerate(self.down):
            hidden = block(hidden, parts.pop(0))
            if i < len(self.shrink):
                skips.append(hidden)
                hidden = self.shrink[i](hidden)
        hidden = self.middle(hidden, parts.pop(0))
        for grow, block in zip(self.grow, self.up):
            hidden = block(torch.cat([grow(hidden), skips.pop()], 1), parts.pop(0))
        return self.leave(hidden).transpose(1, 2)


def check_horizon(horizon: int, multipliers: Sequence[int]) -> None:
    """Raise InputError unless the U-Net can halve the horizon between all its levels."""
    factor = 2 ** (len(multipliers) - 1)
    if horizon < 2 * factor or horizon % factor:
        raise InputError(
            f"horizon: must be a multiple of {factor}, at least {2 * factor}, for {len(multipliers)} U-Net levels; "
            f"found {horizon}"
        )
