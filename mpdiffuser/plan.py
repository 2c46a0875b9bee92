"""A plan: its candidates, their scores, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mpdiffuser.errors import InputError

# decoded latents (B, H, d) and actions (B, H, m) -> the reward of each step (B, H); -inf excludes a plan
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Plan:
    """Candidate plans, decoded (in the units of the encoder), on the pipeline's device.

    Attributes:
        latents: (B, N, H, d).
        actions: (B, N, H, m).
        scores: (B, N).
        chosen: (B,), the index of the chosen candidate.
        plan_ms: milliseconds to sample and rank all candidates.
        costs: (B, N), the expected cost over the rest of the episode; None without a budget.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    scores: torch.Tensor
    chosen: torch.Tensor
    plan_ms: float
    costs: torch.Tensor | None = None

    @property
    def best_latents(self) -> torch.Tensor:
        """The chosen candidate's latents, (B, H, d)."""
        return self.latents[torch.arange(len(self.chosen)), self.chosen]

    @property
    def best_actions(self) -> torch.Tensor:
        """The chosen candidate's actions, (B, H, m)."""
        return self.actions[torch.arange(len(self.chosen)), self.chosen]


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


def choose(
    scores: np.ndarray,
    actions: np.ndarray,
    temperature: float,
    costs: np.ndarray | None = None,
    budget: np.ndarray | None = None,
) -> np.ndarray:
    """Return the index (B,) of the chosen candidate of each row, by minimum Bayes risk (Kumar and Byrne 2004).

    The chosen candidate's first action has the smallest weighted mean distance to the first actions of all candidates.
    The weight of a candidate is exp(score / temperature), with scores in standard deviations of the row. The best of a
    few scores is often an error of the ranker. An action that many good candidates share is more reliable. At
    temperature 0 the candidate with the best score is chosen.

    With costs, only candidates within the budget can be chosen; if there is none, the cheapest is chosen. A candidate
    with a non-finite score or cost is chosen only if all candidates of the row are non-finite.

    Args:
        scores: (B, N).
        actions: (B, N, m), the first action of each candidate.
        temperature: see above.
        costs: (B, N), the expected costs.
        budget: (B,), the largest allowed cost.
    """
    sound = np.isfinite(scores)
    if costs is not None and budget is not None:
        sound = sound & np.isfinite(costs)
        fits = sound & (costs <= budget[:, None])
        cheapest = np.where(sound, costs, np.inf).argmin(1)
        sound = np.where(fits.any(1)[:, None], fits, np.arange(costs.shape[1]) == cheapest[:, None])
    if temperature == 0:
        return np.where(sound, scores, -np.inf).argmax(1)
    ranked = np.ma.masked_array(scores, ~sound)
    deviation = np.maximum(ranked.std(1, keepdims=True).filled(0), 1e-12)
    weights = np.ma.exp((ranked - ranked.max(1, keepdims=True)) / (temperature * deviation)).filled(0)
    distances = np.linalg.norm(actions[:, :, None] - actions[:, None], axis=-1)
    return np.where(sound, (distances * weights[:, None]).sum(-1), np.inf).argmin(1)
