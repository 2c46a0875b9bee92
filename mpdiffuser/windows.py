"""Windows: the training examples of the models.

A window starts at every step of an episode. Rows after the end repeat the final row, and the masks remove them from the
loss. Example: an episode of T = 5 steps (rows z_0..z_5), horizon H = 4 and stride 1:

    start 0:  z0 z1 z2 z3      mask 1 1 1 1      action_mask 1 1 1 1
    start 2:  z2 z3 z4 z5      mask 1 1 1 1      action_mask 1 1 1 0      (no action is taken at the final observation)
    start 4:  z4 z5 z5 z5      mask 1 1 0 0      action_mask 1 0 0 0
"""

from collections.abc import Sequence

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.models.normalizer import Marginals, Normalizer


def to_go(
    amounts: np.ndarray,
    episodes: Episodes,
    discount: float,
    values: np.ndarray | None = None,
    td_lambda: float = 1.0,
) -> np.ndarray:
    """Return the discounted mean of the future amounts at each row, (1 - g) sum_k g^k amount_k: (M,) float32.

    After a termination the amounts are 0. A truncated episode would continue, so the factor of the sum over its n
    remaining steps is (1 - g) / (1 - g^n) instead of 1 - g, as if later steps had the same mean. Targets early and late
    in an episode then have the same meaning. The final row of a truncated episode gets the result of its last step.

    With values V, the result is the TD(lambda) return (Sutton 1988) with lambda = td_lambda:
    R_t = (1 - g) amount_t + g ((1 - lambda) V_t+1 + lambda R_t+1). It uses logged amounts for about 1 / (1 - lambda)
    steps, then the value of the state after them. A truncated episode continues with V of its final row.

    Args:
        amounts: rewards or costs, (M,).
        episodes: the episodes of the rows.
        discount: g.
        values: V, (M,); None: no values, and td_lambda has no effect.
        td_lambda: lambda.
    """
    if values is None:
        td_lambda = 1.0
    result = np.zeros(len(amounts), np.float64)
    for e in range(len(episodes)):
        rows, last = episodes.rows(e), episodes.offsets[e + 1] - 1
        terminated = episodes["terminations"][last - 1]
        logged = (1 - discount) * np.asarray(amounts[rows.start : last], np.float64)
        if values is not None:
            value = np.array(values[rows], np.float64)
            value[-1] *= not terminated
            logged += discount * (1 - td_lambda) * value[1:]
            result[last] = value[-1]
        result[rows.start : last + 1] = decayed_sums(np.append(logged, result[last]), discount * td_lambda)
        if values is None and not terminated:
            seen = np.arange(last - rows.start, 0, -1)
            result[rows.start : last] /= 1 - discount**seen
            result[last] = result[last - 1]
    return result.astype(np.float32)


def decayed_sums(values: np.ndarray, decay: float) -> np.ndarray:
    """Return sum_k decay^k values_t+k at each t, (T,), of values (T,): by doubling the number of terms."""
    sums, terms = np.array(values, np.float64), 1
    while terms < len(sums):
        sums[:-terms] += decay**terms * sums[terms:]
        terms *= 2
    return sums


GOALS = 16  # of a window; with one, a planner learns the pairs of state and goal by heart


class Windows:
    """Windows of H rows with their condition, accessed by index.

    Args:
        episodes: the `observations` are latents (M, d).
        targets: the planner's targets at each row, (M, c): return_to_go, cost_to_go.
        horizon: H.
        latents, actions: fitted normalisers.
        condition: fitted marginals of the targets.
        weights: (M,), the weight of the window that starts at each row. A window with twice the weight occurs twice as
            often. None: equal weights.
        goal_distance: mean number of steps to a goal, a later latent of the episode, at most its last. The number has a
            geometric distribution (hindsight relabelling: Andrychowicz et al. 2017). Each window is there `GOALS`
            times, each time with a goal of its own. None: no goals.
        stride: steps between two rows of a window.
    """

    def __init__(
        self,
        episodes: Episodes,
        targets: np.ndarray,
        horizon: int,
        latents: Normalizer,
        actions: Normalizer,
        condition: Marginals,
        weights: np.ndarray | None = None,
        goal_distance: float | None = None,
        stride: int = 1,
    ) -> None:
        self.ahead = stride * torch.arange(horizon)
        with torch.no_grad():
            self.latents = latents.normalize(torch.from_numpy(np.array(episodes["observations"], np.float32)))
            self.actions = actions.normalize(torch.from_numpy(np.array(episodes["actions"], np.float32)))
            self.condition = condition.normalize(torch.from_numpy(targets))
        ends = torch.from_numpy(episodes.offsets[1:] - 1)  # row of the final observation
        self.last_row = ends[torch.from_numpy(episodes.episode_of_row)]
        self.owners = episodes.numbers[episodes.episode_of_row]
        starts = step_rows(episodes)
        self.starts = torch.from_numpy(starts if weights is None else starts[resample(weights[starts])])
        self.goal_steps: torch.Tensor | None = None  # from the start of the window to its goal
        if goal_distance is not None:
            steps = np.random.default_rng(0).geometric(min(1.0, 1 / goal_distance), GOALS * len(self.starts))
            self.goal_steps = torch.from_numpy(steps.astype(np.int32))

    def __len__(self) -> int:
        return len(self.starts if self.goal_steps is None else self.goal_steps)

    def first_rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the first rows (B,) of the windows of indices (B,)."""
        return self.starts[indices % len(self.starts)]

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the windows of indices (B,).

        Returns:
            `latents` (B, H, d), `actions` (B, H, m), `mask` and `action_mask` (B, H), `condition` (B, c), and with
            goals `goal` (B, d).
        """
        start = self.first_rows(indices)
        last = self.last_row[start][:, None]
        goal = {}
        if self.goal_steps is not None:
            goal["goal"] = self.latents[(start + self.goal_steps[indices]).minimum(last[:, 0])]
        rows = start[:, None] + self.ahead
        clipped = rows.minimum(last)
        return {
            "latents": self.latents[clipped],
            "actions": self.actions[clipped],
            "mask": (rows <= last).float(),
            "action_mask": (rows < last).float(),
            "condition": self.condition[start],
            **goal,
        }

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the windows (B,) are from."""
        return self.owners[self.first_rows(indices).numpy()]


class Mixture:
    """Training examples of several sources, accessed by index. Each source makes up a share of them.

    Args:
        parts: the sources, such as `Windows`.
        shares: the share of each source, of sum 1.
    """

    def __init__(self, parts: Sequence["Windows | Steps"], shares: Sequence[float]) -> None:
        lengths = [len(part) for part in parts]
        self.parts, self.firsts = list(parts), np.cumsum([0, *lengths[:-1]])
        weights = np.repeat([share / length for share, length in zip(shares, lengths)], lengths)
        self.items = torch.from_numpy(resample(weights))
        self.owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(lengths))[self.items]

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the examples of indices (B,), as the sources return them."""
        places, found = self._split(indices)
        joined = [part.batch(each) for part, each in zip(self.parts, found)]
        order = torch.cat(places).argsort()
        return {key: torch.cat([each[key] for each in joined])[order] for key in joined[0]}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the episodes, each in its own dataset, that the examples (B,) are from."""
        places, found = self._split(indices)
        numbers = np.concatenate([part.sources(each) for part, each in zip(self.parts, found)])
        return numbers[torch.cat(places).argsort().numpy()]

    def _split(self, indices: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return for each source the places in the batch and the source's own indices."""
        places = [torch.nonzero(self.owner[indices] == number)[:, 0] for number in range(len(self.parts))]
        own = [self.items[indices[place]] - int(first) for place, first in zip(places, self.firsts)]
        return places, own


def resample(weights: np.ndarray) -> np.ndarray:
    """Return n indices (n,) of n items in proportion to their weights (n,), by systematic resampling (Kitagawa 1996).

    The count of each item is the floor or the ceiling of its expected count.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    return np.searchsorted(cumulative, (np.arange(len(weights)) + 0.5) / len(weights) * cumulative[-1])


class Steps:
    """Single decoded steps for the ranker, accessed by index.

    Args:
        episodes: the `observations` are latents (M, d).
        return_to_go: (M,).
        cost_to_go: (M,), if the data have costs.
        weights: (M,), the relative frequency of each row; None: equal frequencies.
    """

    def __init__(
        self,
        episodes: Episodes,
        return_to_go: np.ndarray,
        cost_to_go: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        rows = step_rows(episodes)
        rows = rows if weights is None else rows[resample(weights[rows])]
        self.owners = episodes.numbers[episodes.episode_of_row[rows]]
        take = lambda key: torch.from_numpy(np.array(episodes[key][rows], np.float32))  # noqa: E731
        self.tensors = {
            "latents": take("observations"),
            "actions": take("actions"),
            "rewards": take("rewards"),
            "continuations": 1 - take("terminations"),
            "return_to_go": torch.from_numpy(return_to_go[rows]),
        }
        if cost_to_go is not None:
            self.tensors |= {"costs": take("costs"), "cost_to_go": torch.from_numpy(cost_to_go[rows])}

    def __len__(self) -> int:
        return len(self.tensors["rewards"])

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the steps of indices (B,).

        Returns:
            `latents` (B, d), `actions` (B, m), `rewards`, `continuations`, `return_to_go` (B,), and if the data have
            costs `costs`, `cost_to_go` (B,).
        """
        return {key: tensor[indices] for key, tensor in self.tensors.items()}

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        """Return the numbers (B,) of the dataset's episodes that the steps (B,) are from."""
        return self.owners[indices.numpy()]


class NextSteps(Steps):
    """Steps that also have what comes next. Arguments as `Steps`.

    That is the next decoded latents, `next_latents` (B, d), and the data's next actions, `next_actions` (B, m), where
    `next_known` (B,) is 1: at the last step of an episode they are 0 and unknown.
    """

    def __init__(self, episodes: Episodes, return_to_go: np.ndarray) -> None:
        super().__init__(episodes, return_to_go)
        following = np.array(episodes["observations"][step_rows(episodes) + 1], np.float32)
        self.tensors["next_latents"] = torch.from_numpy(following)
        final = np.isin(step_rows(episodes) + 1, episodes.offsets[1:] - 1)
        actions = np.where(final[:, None], 0, episodes["actions"][step_rows(episodes) + 1]).astype(np.float32)
        self.tensors["next_actions"] = torch.from_numpy(actions)
        self.tensors["next_known"] = torch.from_numpy((~final).astype(np.float32))


def step_rows(episodes: Episodes) -> np.ndarray:
    """Return the indices of the rows with a step: all rows except the final row of each episode."""
    keep = np.ones(episodes.offsets[-1], bool)
    keep[episodes.offsets[1:] - 1] = False
    return np.flatnonzero(keep)


def split_indices(count: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `count` episodes at random into training and held-out episodes, and return their sorted indices.

    Each part has at least one episode. A single episode is in both parts.

    Args:
        count: number of episodes.
        validation: share of held-out episodes, 0 to 1.
        seed: of the random split.
    """
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(max(1, round(validation * count)), max(1, count - 1))
    return np.sort(order[held_out:] if count > 1 else order), np.sort(order[:held_out])


def split(episodes: Episodes, validation: float, seed: int) -> tuple[Episodes, Episodes]:
    """Return the training episodes and the held-out episodes of `split_indices`."""
    train, held_out = split_indices(len(episodes), validation, seed)
    return episodes.select(train), episodes.select(held_out)


def occupancy(episodes: Episodes, discount: float, share: float) -> np.ndarray:
    """Return relative frequencies of the rows, (M,), with mean 1 over the rows with a step.

    The frequency is a mixture: `share` times the discounted occupancy plus (1 - share) times a uniform frequency. The
    discounted occupancy is proportional to g^t with t steps since the start of the episode. This is the weight of a row
    in a discounted return, and the weight of states in the policy gradient (Sutton et al. 2000). Every episode visits
    its first rows, but they are a small part of the rows of a long episode.

    Args:
        episodes: the episodes of the rows.
        discount: g.
        share: weight of the discounted occupancy, 0 to 1.
    """
    rows = np.arange(len(episodes.episode_of_row))
    weights = discount ** (rows - episodes.offsets[episodes.episode_of_row]).astype(np.float64)
    return 1 - share + share * weights / weights[step_rows(episodes)].mean()
