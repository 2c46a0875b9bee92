"""Diffusion MPC (Zhou et al. 2024): action proposals, then what they lead to, then a ranking."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from mpdiffuser.rivals.base import Rival
from mpdiffuser.sampler import Sampler
from mpdiffuser.schedule import Move


class ProposalSampler(Sampler):
    """Draws actions, then all states at once from the dynamics model, which is given these actions as they are."""

    def respond(
        self,
        x: torch.Tensor,
        todo: Sequence[Move],
        noise: Callable[[], torch.Tensor],
        fix: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        actions = x[..., self.planner.config["latent_dim"] :]
        # all levels, even after a warm start: the proposals bring no states to start from
        return super().respond(x, self.moves, noise, partial(fix, committed=actions))


class DMPC(Rival):
    """Sample, score, rank."""

    roles = {"planner": "action_planner", "dynamics": "clean_dynamics", "ranker": "critic"}  # noqa: RUF012
    fixed = {"composition": "sequential", "guidance": 0.0}  # noqa: RUF012
    drawing = ProposalSampler
