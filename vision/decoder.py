"""The decoder maps latents to frames, which show plans. The training of the latents does not use it."""

from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module
from torch import nn

from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.normalizer import Normalizer


class Decoder(Model):
    """A network that maps latents (B, d) to frames (B, height, width, 3).

    It draws a small grid and doubles it until it covers the frame. The rest of the grid is cut off.

    Args:
        latent_dim: d.
        height, width: of the frames, in pixels.
        channels: number of channels of the last layer, a multiple of 8.

    Raises:
        InputError: for a number that is not allowed.
    """

    @register_to_config
    def __init__(self, latent_dim: int, height: int = 64, width: int = 64, channels: int = 8) -> None:
        super().__init__()
        for name, side in (("height", height), ("width", width)):
            if side < 1:
                raise InputError(f"decoder.{name}: must be at least 1 pixel, found {side}")
        if channels < 8 or channels % 8:
            raise InputError(f"decoder.channels: must be a multiple of 8, found {channels}")
        self.height, self.width = height, width
        doublings = max(0, (min(height, width) // 4).bit_length() - 1)  # so that the first grid is 4 to 7 cells high
        rows, columns = (-(-side // 2**doublings) for side in (height, width))
        self.latents = Normalizer(latent_dim)
        widths = [channels * 2**i for i in range(doublings, -1, -1)]
        self.enter = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.SiLU(),
            nn.Linear(256, widths[0] * rows * columns),
            nn.Unflatten(1, (widths[0], rows, columns)),
        )
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.GroupNorm(8, a), nn.SiLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.grow = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, d) -> pictures (B, 3, height, width), values about 0..1."""
        grid = self.grow(self.enter(self.latents.normalize(latents)))
        return grid[..., : self.height, : self.width] + 0.5

    @torch.inference_mode()
    def frames(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, d) -> frames (B, height, width, 3) uint8."""
        return (self(latents).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Return the loss of a batch of `Pictures`: latents (B, d), frames (B, height, width, 3) uint8.

        A pixel has a larger weight if it differs from the mean picture of the batch.
        """
        target = batch["frames"].permute(0, 3, 1, 2).float() / 255
        difference = (target - target.mean(0)).abs().mean(1, keepdim=True)
        weight = 0.2 + 10 * difference
        return {"loss": (weight * (self(batch["latents"]) - target).square()).mean()}
