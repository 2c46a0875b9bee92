"""The forward model: the next latent of one step.

It predicts where a plan will begin that arrives late (`Controller`), and how a changed robot differs
(`mpdiffuser.adaptation`).
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module

from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.schedule import NoiseSchedule


class ForwardModel(Model):
    """A deterministic model of one step, z_t+1 = z_t + f(z_t, u_t).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.

    Attributes:
        latents: normaliser of z_t.
        changes: normaliser of z_t+1 - z_t.
    """

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.latents = Normalizer(latent_dim)
        self.changes = Normalizer(latent_dim)
        self.step = mlp(latent_dim + action_dim, hidden, latent_dim)

    def forward(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Decoded latents (..., d), actions (..., m) in [-1, 1] -> the next decoded latents (..., d)."""
        inputs = torch.cat([self.latents.normalize(latents), actions], -1)
        return latents + self.changes.denormalize(self.step(inputs))

    def errors(self, latents: torch.Tensor, actions: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error (...) of the next latents `following` (..., d), in variances of the change."""
        return ((self(latents, actions) - following) / self.changes.std).square().mean(-1)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the mean error of a batch of `NextSteps`."""
        return {"loss": self.errors(batch["latents"], batch["actions"], batch["next_latents"]).mean()}
