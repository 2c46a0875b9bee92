"""Behaviour cloning: the baseline that copies the data's actions."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.schedule import NoiseSchedule


class BehaviourCloning(ModelMixin, ConfigMixin):
    """A deterministic policy of latents, trained by mean squared error (a Gaussian policy's mean).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
    """

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.latents = Normalizer(latent_dim)
        self.policy = mlp(latent_dim, hidden, action_dim)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoded latents (B, d) -> actions (B, m) in [-1, 1]."""
        return self.policy(self.latents.normalize(latents)).tanh()

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Batch of decoded steps: latents (B, d), actions (B, m)."""
        return {"loss": (self(batch["latents"]) - batch["actions"]).square().mean()}
