"""A plan: its candidates, their scores, and the weights of the candidates in the executed plan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from mpdiffuser.errors import InputError

# latents (B, H, d) and actions (B, H, m) in the data's units -> the reward of each step (B, H); -inf excludes a plan
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Plan:
    """Candidate plans, decoded, on the pipeline's device.

    Attributes:
        latents: (B, N, H, d), in the encoder's units.
        actions: (B, N, H, m), in the data's units.
        scores: (B, N).
        weights: (B, N), with sum 1. The executed plan is the weighted mean of the candidates.
        plan_ms: milliseconds to sample and rank all candidates.
        costs: (B, N), the expected cost over the rest of the episode; None without a budget.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    plan_ms: float
    costs: torch.Tensor | None = None

    @property
    def executed_latents(self) -> torch.Tensor:
        """The executed plan's latents, (B, H, d)."""
        return self._mean(self.latents)

    @property
    def executed_actions(self) -> torch.Tensor:
        """The executed plan's actions, (B, H, m)."""
        return self._mean(self.actions)

    @property
    def sound(self) -> torch.Tensor:
        """Whether the executed plan and a score are finite, (B,) bool."""
        parts = (self.executed_latents, self.executed_actions)
        finite = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
        return finite & self.scores.isfinite().any(1)

    def _mean(self, candidates: torch.Tensor) -> torch.Tensor:
        weights = self.weights[..., None, None]
        return torch.where(weights > 0, weights * candidates, 0).sum(1)  # candidates without weight may be non-finite


def total_reward(objective: Objective, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Return the sums (B,) of an objective's rewards over rollouts (B, H, d), (B, H, m); a non-finite sum is -inf.

    The sum omits the last row, since the plan does not have the state after the last action.

    Raises:
        InputError: if the objective does not return one reward for each step.
    """
    rewards = objective(latents, actions)
    if not isinstance(rewards, torch.Tensor) or rewards.shape != actions.shape[:-1]:
        found = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
        raise InputError(f"objective: must return a tensor of rewards {tuple(actions.shape[:-1])}, found {found}")
    score = rewards[:, :-1].sum(-1)
    return torch.where(score.isfinite(), score, -torch.inf)


def candidate_weights(
    scores: torch.Tensor,
    temperature: float,
    costs: torch.Tensor | None = None,
    budget: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weights (B, N) of the candidates in the executed plan; each row has sum 1.

    A weight is proportional to exp(score / temperature), with scores in standard deviations of the row (the average of
    path integral control: Williams et al. 2017). A large temperature gives equal weights. The mean of all candidates is
    more accurate than any of them, since their noise cancels. At temperature 0 the best score has all the weight.

    With costs, only candidates within the budget have weight; if there is none, the cheapest has all the weight. A
    candidate with a non-finite score or cost has weight only if all candidates of the row are non-finite.

    Args:
        scores: (B, N).
        temperature: see above.
        costs: (B, N), the expected costs.
        budget: (B,), the largest allowed cost.
    """
    sound = scores.isfinite()
    if costs is not None and budget is not None:
        sound = sound & costs.isfinite()
        fits = sound & (costs <= budget[:, None])
        cheapest = costs.where(sound, torch.inf).argmin(1)
        only = torch.arange(costs.shape[1], device=costs.device) == cheapest[:, None]
        sound = torch.where(fits.any(1, keepdim=True), fits, only)
    sound = sound | ~sound.any(1, keepdim=True)
    known, count = scores.nan_to_num(0.0, 0.0, 0.0), sound.sum(1, keepdim=True)
    centred = known - known.where(sound, 0.0).sum(1, keepdim=True) / count
    if temperature == 0:
        return one_hot(centred.where(sound, -torch.inf).argmax(1), scores.shape[1]).to(scores.dtype)
    deviation = (centred.square().where(sound, 0.0).sum(1, keepdim=True) / count).sqrt().clamp(min=1e-12)
    return (centred / (temperature * deviation)).where(sound, -torch.inf).softmax(1)
