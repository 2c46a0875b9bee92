"""TD3+BC (Fujimoto and Gu 2021): a policy that maximises Q and stays near the actions in the data."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch.func import functional_call

from mpdiffuser.errors import InputError
from mpdiffuser.methods.q_learning import QLearning, recipe
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.twin_q import TwinQ
from mpdiffuser.schedule import NoiseSchedule


class ActorCritic(TwinQ):
    """Twin Q and a deterministic policy, each with slow targets (TD3: Fujimoto et al. 2018).

    A subclass defines `policy_loss`, and its configuration has the arguments.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers of each network.
        target_rate: update rate of the targets.
        nonnegative: names of settings -> values that must be at least 0.

    Raises:
        InputError: for a value that is not allowed.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, hidden: int, target_rate: float, nonnegative: Mapping[str, float]
    ) -> None:
        super().__init__(latent_dim, action_dim, hidden, target_rate)
        for name, value in nonnegative.items():
            if value < 0:
                raise InputError(f"baselines.{self.method}.{name}: must be at least 0, found {value}")
        self.policy = mlp(latent_dim, hidden, action_dim)
        self.target_policy = deepcopy(self.policy).requires_grad_(False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoded latents (B, d) -> actions (B, m) in [-1, 1]."""
        return self.policy(self.latents.normalize(latents)).tanh()

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the noise on the target policy's actions."""
        return {"noise": torch.randn(batch, self.config["action_dim"], generator=generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `NextSteps`: the policy's, and TD3's loss of Q.

        The two losses have no parameter in common.
        """
        latents, actions = batch["latents"], batch["actions"]
        with torch.no_grad():
            following = self.config["discount"] * batch["continuations"] * self.next_value(batch, random)
            q_target = self.reward_scale * batch["rewards"] + following
        q = (self.action_values(self.q, latents, actions) - q_target).square().mean(1).sum()
        latents = latents.detach()  # the policy's loss trains no encoder (`experiments.end_to_end`)
        chosen = self(latents)
        worth = self.worth(torch.cat([self.latents.normalize(latents), chosen], -1))
        cloning = (chosen - actions).square().mean()
        policy = self.policy_loss(cloning, worth.mean() / worth.abs().mean().detach().clamp(min=1e-8))
        return {"loss": q + policy, "q_loss": q, "cloning_loss": cloning}

    def next_value(self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the value (B,) of the next latents: the smaller target Q of the target policy's noisy actions."""
        return self.action_values(self.target, batch["next_latents"], self.target_actions(batch, random)).amin(0)

    def target_actions(self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the target policy's actions (B, m) for the next latents, with clipped noise."""
        c = self.config
        noise = (c["policy_noise"] * random["noise"]).clamp(-c["noise_clip"], c["noise_clip"])
        return (self.target_policy(self.latents.normalize(batch["next_latents"])).tanh() + noise).clamp(-1, 1)

    def worth(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the policy maximises, (B,), for latents and actions (B, d + m): the first Q, held fixed."""
        return self._fixed_value(0, inputs)

    def _fixed_value(self, number: int, inputs: torch.Tensor) -> torch.Tensor:
        network = self.q[number]
        fixed = {name: weight.detach() for name, weight in network.named_parameters()}
        return functional_call(network, fixed, (inputs,))[:, 0]

    def policy_loss(self, cloning: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        """Return the policy's loss, from the mean squared distance from the data's actions and Q / mean |Q|."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the targets."""
        super().after_step()
        self.follow(self.target_policy, self.policy)


class TD3BCPolicy(ActorCritic):
    """TD3's networks with the policy's loss of TD3+BC.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers of each network.
        discount: g.
        alpha: weight of Q in the policy's loss; 0 is behaviour cloning.
        policy_noise, noise_clip: standard deviation and bound of the noise on the target policy's actions.
        target_rate: update rate of the targets.

    Raises:
        InputError: for a value that is not allowed.
    """

    method = "td3_bc"

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int,
        discount: float,
        alpha: float,
        policy_noise: float,
        noise_clip: float,
        target_rate: float,
    ) -> None:
        nonnegative = {"alpha": alpha, "policy_noise": policy_noise, "noise_clip": noise_clip}
        super().__init__(latent_dim, action_dim, hidden, target_rate, nonnegative)

    def policy_loss(self, cloning: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        """Equations 3 and 5 of the paper."""
        return cloning - self.config["alpha"] * worth


class TD3BC(QLearning):
    """Executes its policy's action."""

    name = "td3_bc"
    label = "TD3+BC"
    color = ("#8a6d1f", "#d3b45a")
    summary = "A policy that maximises its estimated value and stays near the data's actions, without planning."
    order = 12
    settings = {  # noqa: RUF012
        "hidden": 256,
        "alpha": 1.0,
        "policy_noise": 0.2,
        "noise_clip": 0.5,
        "target_rate": 0.005,
    }
    kind = TD3BCPolicy
    models = (recipe(TD3BCPolicy),)
