"""ReBRAC (Tarasov et al. 2023): TD3+BC that stays near the data's actions in the policy and in the values, apart."""

import torch
from diffusers.configuration_utils import register_to_config

from mpdiffuser.methods.q_learning import QLearning, recipe
from mpdiffuser.methods.td3_bc import TD3BC, ActorCritic


class ReBRACPolicy(ActorCritic):
    """TD3's networks with two penalties of their own.

    Args:
        latent_dim, action_dim, hidden, discount, policy_noise, noise_clip, target_rate: as for TD3+BC.
        actor_penalty: weight of the squared distance of the policy's action from the data's.
        critic_penalty: the same for the next action in the values, in units of the scaled reward.

    Raises:
        InputError: for a value that is not allowed.
    """

    method = "rebrac"

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int,
        discount: float,
        actor_penalty: float,
        critic_penalty: float,
        policy_noise: float,
        noise_clip: float,
        target_rate: float,
    ) -> None:
        nonnegative = {"actor_penalty": actor_penalty, "critic_penalty": critic_penalty}
        nonnegative |= {"policy_noise": policy_noise, "noise_clip": noise_clip}
        super().__init__(latent_dim, action_dim, hidden, target_rate, nonnegative)

    def next_value(self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor]) -> torch.Tensor:
        """TD3's value minus the penalty; at an episode's last step, whose next action is unknown, without it."""
        distance = (self.target_actions(batch, random) - batch["next_actions"]).square().sum(-1)
        penalty = self.config["critic_penalty"] * batch["next_known"] * distance
        return super().next_value(batch, random) - penalty

    def worth(self, inputs: torch.Tensor) -> torch.Tensor:
        """The smaller of both Q."""
        return torch.minimum(*(self._fixed_value(number, inputs) for number in range(2)))

    def policy_loss(self, cloning: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        """The penalty sums over the action's entries, of which `cloning` is the mean."""
        return self.config["actor_penalty"] * self.config["action_dim"] * cloning - worth


class ReBRAC(QLearning):
    """Executes its policy's action."""

    name = "rebrac"
    label = "ReBRAC"
    color = ("#5d7a2a", "#a5c268")
    summary = "TD3+BC with penalties in the policy and in the values that are weighed apart, without planning."
    order = 13
    settings = {  # noqa: RUF012
        "hidden": TD3BC.settings["hidden"],
        "actor_penalty": 0.1,
        "critic_penalty": 0.01,
        **{name: TD3BC.settings[name] for name in ("policy_noise", "noise_clip", "target_rate")},
    }
    kind = ReBRACPolicy
    models = (recipe(ReBRACPolicy),)
