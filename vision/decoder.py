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
    """A network that maps latents (B, d) to frames (B, size, size, 3).

    Args:
        latent_dim: d.
        size: height and width of the frames, 4 times a power of two (8, 16, 32, ...).
        width: number of channels of the last layer.

    Raises:
        InputError: for a size that is not allowed.
    """

    @register_to_config
    def __init__(self, latent_dim: int, size: int = 64, width: int = 8) -> None:
        super().__init__()
        doublings = (size // 4).bit_length() - 1
        if size != 4 * 2**doublings or doublings < 1:
            raise InputError(f"decoder.size: must be 8, 16, 32, 64, ...; found {size}")
        self.latents = Normalizer(latent_dim)
        channels = [width * 2**i for i in range(doublings, -1, -1)]
        self.enter = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.SiLU(),
            nn.Linear(256, channels[0] * 16),
            nn.Unflatten(1, (channels[0], 4, 4)),
        )
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [nn.GroupNorm(8, a), nn.SiLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.grow = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], 3, 3, padding=1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, d) -> pictures (B, 3, size, size), values about 0..1."""
        return self.grow(self.enter(self.latents.normalize(latents))) + 0.5

    @torch.inference_mode()
    def frames(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, d) -> frames (B, size, size, 3) uint8."""
        return (self(latents).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Return the loss of a batch of `Pictures`: latents (B, d), frames (B, size, size, 3) uint8.

        A pixel has a larger weight if it differs from the mean picture of the batch.
        """
        target = batch["frames"].permute(0, 3, 1, 2).float() / 255
        difference = (target - target.mean(0)).abs().mean(1, keepdim=True)
        weight = 0.2 + 10 * difference
        return {"loss": (weight * (self(batch["latents"]) - target).square()).mean()}
