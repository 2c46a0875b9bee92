"""The ranker: scores decoded rollouts by predicted rewards and terminal value."""

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, pad

from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.schedule import NoiseSchedule


class Ranker(Model):
    """Predicts the reward, continuation and cost of each step, and the value of the last state of a rollout.

    Its inputs are decoded, in the units of the encoder. A return is a discounted mean, (1 - g) sum_k g^k r_k, so a
    value has the unit of a reward for any discount g. A cost_to_go is a discounted mean too. If the data have costs,
    the value also depends on the cost_to_go: V(s, c) is the return that the data reach from s at cost_to_go c.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
        discount: g.
        expectiles: K, the number of expectiles of the returns (Newey and Powell 1987). The expectile 0.5 is the mean.
            Towards 1 the expectile approaches the highest return, towards 0 the lowest. Quantiles are less accurate
            with few data, such as the first steps of episodes.
        optimism: V(s) is this expectile (Kostrikov et al. 2022). The low-cost value is the quantile 1 - optimism of the
            costs.
        costs: whether the data have costs.

    Raises:
        InputError: for fewer than 2 expectiles, or an optimism that is not between 0 and 1.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int = 256,
        discount: float = 0.99,
        expectiles: int = 20,
        optimism: float = 0.9,
        costs: bool = False,
    ) -> None:
        super().__init__()
        if expectiles < 2:
            raise InputError(f"ranker.expectiles: must be at least 2, found {expectiles}")
        if not 0 < optimism < 1:
            raise InputError(f"ranker.optimism: must lie between 0 and 1, found {optimism}")
        self.latents = Normalizer(latent_dim)
        self.rewards = Normalizer(1)
        self.returns = Normalizer(1)
        self.step = mlp(latent_dim + action_dim, hidden, 3)
        self.outcomes = mlp(latent_dim + costs, hidden, expectiles)
        self.cost_scale = Marginals(1) if costs else None
        self.cost_value = mlp(latent_dim, hidden, expectiles) if costs else None

    def forward(self, latents: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Decoded latents (..., d), actions (..., m) -> `reward`, `continuation_logit`, `cost` of each step (...)."""
        inputs = torch.cat([self.latents.normalize(latents), actions], -1)
        reward, continuation, cost = self.step(inputs).unbind(-1)
        return {
            "reward": self.rewards.denormalize(reward[..., None])[..., 0],
            "continuation_logit": continuation,
            "cost": cost,
        }

    def expectiles(self, latents: torch.Tensor, cost_to_go: torch.Tensor | None = None) -> torch.Tensor:
        """Return the expectiles (..., K) of the return from decoded latents (..., d). The k-th has level (k + 1/2) / K.

        They are not sorted: the network's outputs may cross.

        Args:
            latents: (..., d), decoded.
            cost_to_go: (...), if the data have costs.

        Raises:
            InputError: if the data have costs and cost_to_go is None.
        """
        inputs = self.latents.normalize(latents)
        if self.cost_scale is not None:
            if cost_to_go is None:
                raise InputError("ranker: the data have costs, so a value needs a cost_to_go")
            inputs = torch.cat([inputs, self.cost_scale.normalize(cost_to_go[..., None])], -1)
        return self.returns.denormalize(self.outcomes(inputs)[..., None])[..., 0]

    def expectile(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return one expectile (...) of the return. `level` is a number or (...); other arguments as `expectiles`."""
        return _at_level(self.expectiles(latents, cost_to_go), level)

    def value(self, latents: torch.Tensor, cost_to_go: torch.Tensor | None = None) -> torch.Tensor:
        """Return the value V (...) of decoded latents. Arguments as `expectiles`."""
        return self.expectile(latents, self.config["optimism"], cost_to_go)

    def low_cost_value(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the mean cost per step (...) from decoded latents (..., d): the quantile 1 - optimism of the costs."""
        assert self.cost_scale is not None and self.cost_value is not None
        known = self.cost_value(self.latents.normalize(latents))
        return self.cost_scale.denormalize(_at_level(known, 1 - self.config["optimism"])[..., None])[..., 0]

    @torch.inference_mode()
    def values(self, latents: np.ndarray, cost_to_go: np.ndarray | None = None) -> np.ndarray:
        """Return the values (M,) of decoded latents (M, d), at cost_to_go (M,) if the data have costs."""
        split = lambda x: torch.from_numpy(np.array(x, np.float32)).to(self.device).split(16_384)  # noqa: E731
        rows = split(latents)
        costs = [None] * len(rows) if cost_to_go is None else split(cost_to_go)
        return torch.cat([self.value(*pair) for pair in zip(rows, costs)]).cpu().numpy()

    def scores(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        cost_to_go: torch.Tensor | None = None,
        stride: int = 1,
    ) -> torch.Tensor:
        """Return the expected return (...) of decoded rollouts; a non-finite result is -inf.

        The score is (1 - g) sum_{k < H - 1} g^k c_k r_k + g^(H - 1) c_{H - 1} V(z_{H - 1}), where c_k is the
        probability that the episode reaches step k. With a stride s, row k is step s k, and stands for the s steps
        before the next row: g and the probability to go on from a row are raised to the power s.

        Args:
            latents: (..., H, d).
            actions: (..., H, m).
            cost_to_go: (...), of V, if the data have costs.
            stride: steps between two rows of a rollout.
        """
        out = self(latents, actions)
        g = self.config["discount"] ** stride
        powers = g ** torch.arange(latents.shape[-2], device=latents.device, dtype=latents.dtype)
        logged = stride * logsigmoid(out["continuation_logit"][..., :-1]).cumsum(-1)  # ONNX has no cumulative product
        alive = pad(logged, (1, 0)).exp()
        discounted = powers * alive
        running = (1 - g) * (discounted * out["reward"])[..., :-1].sum(-1)
        value = self.value(latents[..., -1, :], cost_to_go)
        score = running + discounted[..., -1] * value
        return torch.where(score.isfinite(), score, -torch.inf)

    def expected_cost(
        self, latents: torch.Tensor, actions: torch.Tensor, steps: torch.Tensor, rate: torch.Tensor
    ) -> torch.Tensor:
        """Return the expected undiscounted cost (...) of decoded rollouts and of the rest of the episode.

        The cost is sum_{k < min(H - 1, steps)} cost_k + (steps - H + 1)_+ max(rate, low-cost value of z_{H - 1}). Later
        plans have the same target rate, so a rollout within the budget spends the budget evenly.

        Args:
            latents: (..., H, d).
            actions: (..., H, m).
            steps: (...), the remaining steps of the episode.
            rate: (...), the remaining budget per remaining step.
        """
        ahead = latents.shape[-2] - 1
        counted = torch.arange(ahead, device=latents.device) < steps[..., None]
        rollout_cost = (self(latents, actions)["cost"][..., :-1].clamp(min=0) * counted).sum(-1)
        return rollout_cost + (steps - ahead).clamp(min=0) * self.low_cost_value(latents[..., -1, :]).maximum(rate)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for a batch of `Steps`.

        The batch has `latents` (B, d), `actions` (B, m), `rewards`, `continuations`, `return_to_go` (B,), and if the
        data have costs `costs`, `cost_to_go` (B,).
        """
        out, cost_to_go = self(batch["latents"], batch["actions"]), batch.get("cost_to_go")
        reward = ((out["reward"] - batch["rewards"]) / self.rewards.std).square().mean()
        gap = (batch["return_to_go"][:, None] - self.expectiles(batch["latents"], cost_to_go)) / self.returns.std
        value = (_levels(gap).sub((gap < 0).float()).abs() * gap.square()).mean()
        continuation = binary_cross_entropy_with_logits(out["continuation_logit"], batch["continuations"])
        parts = {
            "reward_loss": reward,
            "value_loss": value,
            "continuation_loss": continuation,
        }
        loss = torch.stack(list(parts.values())).sum()
        if self.cost_scale is not None and self.cost_value is not None:
            low_cost = self.cost_value(self.latents.normalize(batch["latents"]))
            parts["cost_loss"] = (out["cost"] - batch["costs"]).square().mean()
            parts["cost_value_loss"] = _quantile_loss(low_cost, self.cost_scale.normalize(batch["cost_to_go"][:, None]))
            loss = loss + parts["cost_loss"] + parts["cost_value_loss"]
        else:
            loss = loss + 0 * out["cost"].sum()  # DistributedDataParallel needs a gradient of every parameter
        return {"loss": loss, **parts}


def _levels(known: torch.Tensor) -> torch.Tensor:
    """Return the levels (K,) of K quantiles or expectiles (..., K)."""
    return (torch.arange(known.shape[-1], device=known.device) + 0.5) / known.shape[-1]


def _at_level(known: torch.Tensor, level: float | torch.Tensor) -> torch.Tensor:
    """Return the quantile or expectile (...) of a level, a number or (...), interpolated in (..., K) of any order."""
    known = known.sort(-1).values
    count = known.shape[-1]
    place = (torch.as_tensor(level, dtype=known.dtype, device=known.device) * count - 0.5).clamp(0, count - 1)
    below = place.long().clamp(max=count - 2).expand(known.shape[:-1])
    low, high = (known.gather(-1, index[..., None])[..., 0] for index in (below, below + 1))
    return torch.lerp(low, high, place - below)


def _quantile_loss(quantiles: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the pinball loss of quantiles (B, K) for observed values (B, 1) (Koenker and Bassett 1978)."""
    gap, levels = seen - quantiles, _levels(quantiles)
    return torch.maximum(levels * gap, (levels - 1) * gap).mean()
