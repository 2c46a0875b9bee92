"""Inverse dynamics: the action between two states."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.models.denoisers import weighted_error
from mpdiffuser.models.mlp import mlp
from mpdiffuser.schedule import NoiseSchedule


class InverseDynamics(ModelMixin, ConfigMixin):
    """The normalised action that leads from one normalised latent to the next (Ajay et al. 2023, section 3.2).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
    """

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int, hidden: int = 512) -> None:
        super().__init__()
        self.action = mlp(2 * latent_dim, hidden, action_dim)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, H, d) -> the actions between them (B, H - 1, m)."""
        return self.action(torch.cat([latents[:, :-1], latents[:, 1:]], -1))

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Squared error of a batch of `Windows`."""
        actions = batch["actions"][:, :-1]
        weight = batch["action_mask"][:, :-1, None].expand_as(actions)
        return {"loss": weighted_error(self(batch["latents"]), actions, weight)}
