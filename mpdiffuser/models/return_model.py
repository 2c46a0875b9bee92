"""The return of a noisy trajectory, whose gradient guides Diffuser."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from mpdiffuser.models.denoisers import hold
from mpdiffuser.models.unet import LevelEmbedding, ResidualBlock, check_horizon
from mpdiffuser.schedule import NoiseSchedule


class ReturnModel(ModelMixin, ConfigMixin):
    """J(x_t, t): the normalised return_to_go that a noisy trajectory foretells (Janner et al. 2022, section 3.2).

    The contracting half of the planner's U-Net, then a linear layer.

    Args:
        latent_dim, action_dim, horizon: d, m, H.
        width, multipliers, embedding: as in the planner.

    Raises:
        InputError: for a horizon that cannot be.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        horizon: int = 32,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        embedding: int = 64,
    ) -> None:
        super().__init__()
        check_horizon(horizon, multipliers)
        widths = [width * m for m in multipliers]
        pairs = zip([width, *widths[:-1]], widths)
        self.level = LevelEmbedding(embedding)
        self.enter = nn.Conv1d(latent_dim + action_dim, width, 1)
        self.blocks = nn.ModuleList([ResidualBlock(a, b, embedding, 5) for a, b in pairs])
        self.shrink = nn.ModuleList([nn.Conv1d(c, c, 3, stride=2, padding=1) for c in widths[:-1]])
        left = horizon // 2 ** (len(widths) - 1)
        self.leave = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * left, 1))

    def forward(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Noisy x (B, H, d + m), levels (B,) -> (B,)."""
        embedding, hidden = self.level(levels), self.enter(x.transpose(1, 2))
        for block, shrink in zip(self.blocks, [*self.shrink, nn.Identity()]):
            hidden = shrink(block(hidden, block.film(embedding)))  # type: ignore[operator]
        return self.leave(hidden)[:, 0]

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """All random numbers of one training step: levels (B,), noise (B, H, d + m)."""
        c = self.config
        return {
            "levels": torch.randint(schedule.config["num_levels"], (batch,), generator=generator),
            "noise": torch.randn(batch, c["horizon"], c["latent_dim"] + c["action_dim"], generator=generator),
        }

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Squared error of the return of a batch of `Windows`, noised."""
        clean = torch.cat([batch["latents"], batch["actions"]], -1)
        noisy = hold(schedule.add_noise(clean, random["noise"], random["levels"]), batch["latents"][:, 0])
        return {"loss": (self(noisy, random["levels"]) - batch["condition"][:, 0]).square().mean()}
