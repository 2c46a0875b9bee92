"""Adapt a pipeline to a changed robot by its actions, from a few minutes of play.

The forward model g of the nominal robot predicts one step: z' = g(z, u). On the changed robot an action u has the
effect of another action T u of the nominal robot, T u = A u + b. From play data T is fitted by

    minimise  mean h((g(z, T u) - z') / s) + (e / N) || (A - I, b) / PRIOR ||^2,      h(r) = sqrt(1 + r^2) - 1

over N steps. s is the median size of the residual with T = I, and e the first term with T = I. h grows linearly, since
contacts give a few large residuals. The second term is the prior that the robot has hardly changed. Only steps with T u
within the bounds count, since g has seen no others; T is fitted `ROUNDS` times, each time to the steps that count by
the last T. A planner's action v is then executed as T^-1 v, within the bounds.

T is the identity, one gain for all actions, a gain for each, a gain and a bias for each, or a matrix and a bias. A form
is chosen in place of a simpler one if its error on held-out steps is lower by more than a standard error, and by more
than the share MATERIAL of the error with T = I.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from mpdiffuser.action_scale import ActionMap
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.tuning import clustered_error
from mpdiffuser.windows import step_rows

FORMS = ("identity", "one gain", "gains", "gains and biases", "matrix")  # simplest first
PRIOR = 0.5  # standard deviation of gains and biases before any data
PIECES, LONGEST = 20, 100  # number of pieces of play, and steps in one
MATERIAL = 0.05  # share of the error with T = I by which a form must be better than a simpler one
ROUNDS, FEWEST = 4, 100  # of a fit, and steps that it needs at least
ROWS = 20_000  # most steps that are used
SATURATED = 0.05  # share of actions at the bounds from which on it is told


def pieces(episodes: Episodes, least: int = 1) -> Episodes:
    """Return the episodes cut into pieces of consecutive steps, which can be held out one by one.

    A piece has as many steps as give `PIECES` pieces, but at most `LONGEST`, and at least `least` even if that is more.
    The last observation of a piece is the first one of the next.

    Args:
        episodes: latent episodes.
        least: steps.
    """
    total = int(episodes.lengths.sum())
    length = min(max(total // PIECES, least), max(LONGEST, least))
    parts = [
        np.arange(first, min(first + length, last) + 1)
        for first, last in zip(episodes.offsets[:-1].tolist(), (episodes.offsets[1:] - 1).tolist())
        for first in range(first, last, length)
    ]
    rows, offsets = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    arrays = {key: array[rows] for key, array in episodes.arrays.items()}
    return Episodes(arrays, offsets, episodes.info, episodes.path, record=episodes.record)


@dataclass(frozen=True)
class Steps:
    """Steps of play: decoded latents (N, d), actions (N, m) in [-1, 1], the next latents, episodes (N,)."""

    latents: torch.Tensor
    actions: torch.Tensor
    following: torch.Tensor
    owners: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Self:
        """Return the steps of latent episodes; of more than `ROWS`, evenly spaced ones."""
        rows = step_rows(episodes)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(int)]
        places = {"observations": rows, "actions": rows, "following": rows + 1}
        arrays = {
            name: torch.from_numpy(np.array(episodes["observations" if name == "following" else name][index]))
            for name, index in places.items()
        }
        return cls(arrays["observations"], arrays["actions"], arrays["following"], episodes.episode_of_row[rows])

    def within(self, *changes: ActionMap) -> "Steps":
        """Return the steps whose actions T u are within [-1, 1] for all of the maps; too few: all steps."""
        keep = np.ones(len(self.owners), bool)
        for change in changes:
            nominal = self.actions.numpy() @ np.array(change.matrix).T + np.array(change.bias)
            keep &= (np.abs(nominal) <= 1).all(1)
        if keep.sum() < FEWEST:
            return self
        rows = torch.from_numpy(keep)
        return Steps(self.latents[rows], self.actions[rows], self.following[rows], self.owners[keep])


class Misfit:
    """The error h of the forward model, in sizes of its residuals on the steps of the changed robot (see the module).

    Args:
        forward: of the nominal robot, without gradients.
        steps: of the changed robot.
    """

    def __init__(self, forward: ForwardModel, steps: Steps) -> None:
        self.forward, self.scale = forward, torch.ones(1)
        with torch.inference_mode():
            residuals = (forward(steps.latents, steps.actions) - steps.following).abs()
        self.scale = residuals.median(0).values.clamp(min=1e-6)

    def __call__(self, steps: Steps, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the error of each step (N,) with A (m, m) and b (m,)."""
        residuals = self.forward(steps.latents, steps.actions @ matrix.T + bias) - steps.following
        return ((1 + (residuals / self.scale).square()).sqrt() - 1).mean(-1)

    def of(self, steps: Steps, change: ActionMap) -> np.ndarray:
        """Return the error of each step (N,) if T is `change`."""
        with torch.inference_mode():
            return self(steps, torch.tensor(change.matrix), torch.tensor(change.bias)).numpy()


def fit(misfit: Misfit, steps: Steps, form: str) -> ActionMap:
    """Return the T of one form that fits the steps best.

    Args:
        misfit: of these steps.
        steps: of the changed robot.
        form: of `FORMS`.
    """
    m = steps.actions.shape[1]
    if form == "identity":
        return ActionMap.identity(m)
    units = torch.eye(m * m).view(m * m, m, m)
    directions = {"one gain": torch.eye(m)[None], "matrix": units}.get(form, units[:: m + 1])
    found = ActionMap.identity(m)
    for _ in range(ROUNDS):
        found = _fitted(misfit, steps.within(found), directions, form in ("gains and biases", "matrix"))
    return found


def _fitted(misfit: Misfit, steps: Steps, directions: torch.Tensor, biased: bool) -> ActionMap:
    """Return the T that fits the steps best.

    Args:
        misfit, steps: see `fit`.
        directions: (n, m, m), whose linear combinations A - I may be.
        biased: whether b may differ from 0.
    """
    m = directions.shape[-1]
    weights, bias = torch.zeros(len(directions), requires_grad=True), torch.zeros(m, requires_grad=True)
    noise = float(misfit.of(steps, ActionMap.identity(m)).mean())
    search = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        search.zero_grad()
        change = torch.einsum("n,nij->ij", weights, directions)
        prior = ((change / PRIOR).square().sum() + (bias / PRIOR).square().sum()) / len(steps.actions)
        value = misfit(steps, torch.eye(m) + change, biased * bias).mean() / noise + prior
        value.backward()
        return value

    search.step(closure)
    with torch.no_grad():
        change = torch.einsum("n,nij->ij", weights, directions)
        return ActionMap.of((torch.eye(m) + change).numpy(), (biased * bias).numpy())


def choose(forward: ForwardModel, train: Steps, held_out: Steps) -> tuple[ActionMap, dict[str, Any]]:
    """Return T and what is to be known of it.

    Args:
        forward: of the nominal robot, without gradients.
        train, held_out: steps of the changed robot.

    Returns:
        T, and as JSON the chosen `form` and of each form its `errors` on held-out steps.
    """
    misfit = Misfit(forward, train)
    maps = {form: fit(misfit, train, form) for form in FORMS}
    held_out = held_out.within(*maps.values())
    errors = {form: misfit.of(held_out, change) for form, change in maps.items()}
    chosen = FORMS[0]
    for form in FORMS[1:]:
        gain = errors[chosen] - errors[form]
        least = max(clustered_error(gain, held_out.owners), MATERIAL * float(errors[FORMS[0]].mean()))
        if gain.mean() > least:
            chosen = form
    return maps[chosen], {
        "form": chosen,
        "errors": {name: float(f"{each.mean():.4g}") for name, each in errors.items()},
    }


def saturation(change: ActionMap, mean: np.ndarray, std: np.ndarray, count: int = 10_000) -> np.ndarray:
    """Return the share of each action (m,) that T^-1 puts beyond the bounds.

    Args:
        change: T.
        mean, std: (m,), of the actions in [-1, 1] that the planner was trained on, which are taken for normal.
        count: number of random actions.
    """
    actions = np.random.default_rng(0).normal(mean, std, (count, len(mean))).clip(-1, 1)
    executed = (actions - np.array(change.bias)) @ np.linalg.inv(np.array(change.matrix)).T
    return (np.abs(executed) > 1).mean(0)


def warnings(change: ActionMap, saturated: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return a sentence on each action whose robot lacks the strength that the planner's actions need.

    Args:
        change: T.
        saturated: result of `saturation`.
        names: of the actions; empty: unknown.
    """
    gains = np.diag(np.array(change.matrix))
    return [
        f"action {names[number] if names else number}: its gain is {gain:.2f}; {share:.0%} of the planner's actions "
        "would be beyond the bounds. This robot lacks the strength; train again with data of it"
        for number, (gain, share) in enumerate(zip(gains, saturated))
        if gain < 0.9 and share > SATURATED
    ]
