"""Implicit Q-learning (Kostrikov et al. 2022): it estimates values only for actions in the data."""

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.distributions import Normal

from mpdiffuser.errors import InputError
from mpdiffuser.methods.q_learning import QLearning, recipe
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.twin_q import TwinQ
from mpdiffuser.schedule import NoiseSchedule

LARGEST_WEIGHT = 100.0


class ImplicitQ(TwinQ):
    """Twin Q, the expectile V of Q over the data's actions, and a Gaussian policy.

    The policy is cloned with the weights exp(beta (Q - V)).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers of each network.
        discount: g.
        expectile: tau, 0 to 1. At 0.5 V is the mean of Q; towards 1 it approaches the maximum of Q.
        inverse_temperature: beta; 0 is behaviour cloning.
        target_rate: update rate of the target Q, the moving average of Q.

    Raises:
        InputError: for an expectile that is not allowed.
    """

    method = "iql"

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int,
        discount: float,
        expectile: float,
        inverse_temperature: float,
        target_rate: float,
    ) -> None:
        super().__init__(latent_dim, action_dim, hidden, target_rate)
        if not 0 < expectile < 1:
            raise InputError(f"baselines.iql.expectile: must lie between 0 and 1, found {expectile}")
        self.v = mlp(latent_dim, hidden, 1)
        self.policy = mlp(latent_dim, hidden, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoded latents (B, d) -> the policy's mean actions (B, m) in [-1, 1]."""
        return self.policy(self.latents.normalize(latents)).tanh()

    def value(self, latents: torch.Tensor) -> torch.Tensor:
        """Return V (B,) of decoded latents (B, d), in units of the scaled reward."""
        return self.v(self.latents.normalize(latents))[:, 0]

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `NextSteps`: equations 5 to 7 of the paper.

        The three losses have no parameter in common.
        """
        c, latents, actions = self.config, batch["latents"], batch["actions"]
        with torch.no_grad():
            known = self.action_values(self.target, latents, actions).amin(0)
            following = c["discount"] * batch["continuations"] * self.value(batch["next_latents"])
            q_target = self.reward_scale * batch["rewards"] + following
        advantage = known - self.value(latents)
        tilt = torch.where(advantage > 0, c["expectile"], 1 - c["expectile"])
        value = (tilt * advantage.square()).mean()
        q = (self.action_values(self.q, latents, actions) - q_target).square().mean(1).sum()
        weight = (c["inverse_temperature"] * advantage.detach()).exp().clamp(max=LARGEST_WEIGHT)
        density = Normal(self(latents), self.log_std.clamp(-5, 2).exp()).log_prob(actions).sum(-1)
        policy = -(weight * density).mean()
        return {"loss": value + q + policy, "value_loss": value, "q_loss": q, "policy_loss": policy}


class IQL(QLearning):
    """Executes the mean action of its Gaussian policy."""

    name = "iql"
    label = "IQL"
    color = ("#a23e6c", "#e08bb0")
    summary = "Implicit Q-learning: a policy cloned in proportion to its actions' advantages, without planning."
    order = 11
    settings = {"hidden": 256, "expectile": 0.7, "inverse_temperature": 3.0, "target_rate": 0.005}  # noqa: RUF012
    kind = ImplicitQ
    models = (recipe(ImplicitQ, learning_rate=1e-3),)
