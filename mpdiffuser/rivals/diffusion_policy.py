"""Diffusion policy (Chi et al. 2023): diffusion of the action sequence given the present state."""

import torch

from mpdiffuser.rivals.base import Rival
from mpdiffuser.sampler import Sampler


class ActionSampler(Sampler):
    """Draws actions; a policy that foresees no states, so the present one stands in for them."""

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        d = self.planner.config["latent_dim"]
        return torch.cat([x[:, :1, :d].expand(-1, x.shape[1], -1), x[..., d:]], -1)


class DiffusionPolicy(Rival):
    """Clones the data's action sequences."""

    roles = {"planner": "action_planner"}  # noqa: RUF012
    foresees = False
    drawing = ActionSampler
