"""Plans of states alone, with the actions from inverse dynamics: Decision Diffuser, and sample-and-rank."""

import torch

from mpdiffuser.models.inverse import InverseDynamics
from mpdiffuser.rivals.base import Rival
from mpdiffuser.sampler import Sampler


class StateSampler(Sampler):
    """Draws states; the actions are those that lead from each to the next, the last one repeated."""

    inverse: InverseDynamics

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        d = self.inverse.config["latent_dim"]
        actions = self.inverse(x[..., :d]).clamp(self.low[d:], self.high[d:])
        return torch.cat([x[..., :d], torch.cat([actions, actions[:, -1:]], 1)], -1)


class DecisionDiffuser(Rival):
    """Ajay et al. 2023: classifier-free guidance towards a high return, whatever the state."""

    roles = {"condition": "logged_returns", "planner": "state_planner", "inverse": "inverse"}  # noqa: RUF012
    fixed = {"composition": "planner"}  # noqa: RUF012
    drawing = StateSampler

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The condition (B, c): the return at the share `level` of the way from the data's least to its largest, and
        the least cost_to_go where the data has costs."""
        low, high = (self.condition.denormalize(bound) for bound in self.condition.bounds())
        wish = low.expand(len(latents), -1).clone()
        wish[:, 0] += level * (high[0] - low[0])
        return self.condition.normalize(wish)


class SampleAndRank(Rival):
    """As Diffusion Veteran (Lu et al. 2025): many unguided plans, of which a critic chooses."""

    roles = {"planner": "state_planner", "inverse": "inverse", "ranker": "critic"}  # noqa: RUF012
    drawing = StateSampler
