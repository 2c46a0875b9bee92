"""Twin action values with slow targets, for methods of offline reinforcement learning (Fujimoto et al. 2018)."""

from copy import deepcopy
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer

EPISODE_RETURN = 1000.0  # rewards are scaled to this range of returns (Kostrikov et al. 2022, appendix B)


class TwinQ(Model):
    """A model with two networks Q, their slow targets, a normaliser of latents and a scale of rewards.

    A subclass defines the loss, and its configuration has `target_rate`.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers of each network.
        target_rate: update rate of the targets.

    Attributes:
        method: name of the method.

    Raises:
        InputError: for a width or a rate that is not allowed.
    """

    method: ClassVar[str] = "q"

    def __init__(self, latent_dim: int, action_dim: int, hidden: int, target_rate: float) -> None:
        super().__init__()
        if not 0 < target_rate <= 1:
            raise InputError(f"baselines.{self.method}.target_rate: must be above 0 and at most 1, found {target_rate}")
        if hidden < 1:
            raise InputError(f"baselines.{self.method}.hidden: must be at least 1, found {hidden}")
        self.latents = Normalizer(latent_dim)
        self.reward_scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.q = nn.ModuleList([mlp(latent_dim + action_dim, hidden, 1) for _ in range(2)])
        self.target = deepcopy(self.q).requires_grad_(False)

    def fit_to(self, episodes: Episodes) -> None:
        """Fit the normaliser and the scale of rewards to the training episodes."""
        self.latents.fit(episodes["observations"])
        span, largest = float(np.ptp(episodes.returns)), float(np.abs(episodes.returns).max())
        if span <= 1e-6 * largest:  # all episodes have one return
            span = largest or EPISODE_RETURN
        self.reward_scale.data.fill_(EPISODE_RETURN / span)

    def action_values(self, networks: nn.ModuleList, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return both values (2, B) of decoded latents (B, d) and actions (B, m); `networks` is `q` or `target`."""
        inputs = torch.cat([self.latents.normalize(latents), actions], -1)
        return torch.stack([network(inputs)[:, 0] for network in networks])

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the target Q."""
        self.follow(self.target, self.q)

    def follow(self, target: nn.Module, online: nn.Module) -> None:
        """Move a target network's weights towards the trained network's, by the share `target_rate`."""
        for slow, fast in zip(target.parameters(), online.parameters()):
            slow.lerp_(fast, self.config["target_rate"])
