"""Implicit Q-learning (Kostrikov et al. 2022): values without asking for actions that the data do not hold."""

from copy import deepcopy

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.distributions import Normal

from mpdiffuser.errors import InputError
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.schedule import NoiseSchedule

LARGEST_WEIGHT = 100.0


class IQL(ModelMixin, ConfigMixin):
    """Twin Q, the expectile V of Q over the data's actions, and a Gaussian policy cloned with exp(beta (Q - V)).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers of each network.
        discount: g.
        expectile: tau, 0.5 to 1: 0.5 = V is the mean of Q, towards 1 = its largest value.
        inverse_temperature: beta; 0 = plain cloning.
        target_rate: share of Q that its target takes over after each step.

    Raises:
        InputError: for an expectile that cannot be.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int = 256,
        discount: float = 0.99,
        expectile: float = 0.7,
        inverse_temperature: float = 3.0,
        target_rate: float = 0.005,
    ) -> None:
        super().__init__()
        if not 0 < expectile < 1:
            raise InputError(f"iql.expectile: must lie between 0 and 1, found {expectile}")
        self.latents = Normalizer(latent_dim)
        self.reward_scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.q = nn.ModuleList([mlp(latent_dim + action_dim, hidden, 1) for _ in range(2)])
        self.target = deepcopy(self.q).requires_grad_(False)
        self.v = mlp(latent_dim, hidden, 1)
        self.policy = mlp(latent_dim, hidden, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoded latents (B, d) -> the policy's mean actions (B, m) in [-1, 1]."""
        return self.policy(self.latents.normalize(latents)).tanh()

    def value(self, latents: torch.Tensor) -> torch.Tensor:
        """V of decoded latents (B, d) -> (B,), in scaled rewards."""
        return self.v(self.latents.normalize(latents))[:, 0]

    def action_values(self, networks: nn.ModuleList, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The twins' values (2, B) of decoded latents (B, d) and actions (B, m)."""
        inputs = torch.cat([self.latents.normalize(latents), actions], -1)
        return torch.stack([network(inputs)[:, 0] for network in networks])

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Batch of `Transitions`. The three losses share no parameter: equations 5 to 7 of the paper, at once."""
        c, latents, actions = self.config, batch["latents"], batch["actions"]
        with torch.no_grad():
            known = self.action_values(self.target, latents, actions).amin(0)
            ahead = c["discount"] * batch["continuations"] * self.value(batch["next_latents"])
            wanted = self.reward_scale * batch["rewards"] + ahead
        advantage = known - self.value(latents)
        tilt = torch.where(advantage > 0, c["expectile"], 1 - c["expectile"])
        value = (tilt * advantage.square()).mean()
        q = (self.action_values(self.q, latents, actions) - wanted).square().mean(1).sum()
        weight = (c["inverse_temperature"] * advantage.detach()).exp().clamp(max=LARGEST_WEIGHT)
        density = Normal(self(latents), self.log_std.clamp(-5, 2).exp()).log_prob(actions).sum(-1)
        policy = -(weight * density).mean()
        return {"loss": value + q + policy, "value_loss": value, "q_loss": q, "policy_loss": policy}

    @torch.no_grad()
    def after_step(self) -> None:
        """The target follows Q."""
        for target, online in zip(self.target.parameters(), self.q.parameters()):
            target.lerp_(online, self.config["target_rate"])
