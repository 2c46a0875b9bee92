"""The ranker: what a decoded rollout is worth."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch.nn.functional import binary_cross_entropy_with_logits

from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.schedule import NoiseSchedule


class Ranker(ModelMixin, ConfigMixin):
    """Reward, continuation and cost of each step, and the value of where a rollout ends.

    It works on decoded rollouts, in the encoder's own space. Returns are means: (1 - g) sum_k g^k r_k, so a value has
    the unit of a reward whatever the discount g.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
        discount: g.
        expectile: of the returns seen from a state, which one the value stands for (0.5 = their mean; towards 1 =
            what the best episodes got from there; Kostrikov et al. 2022, eq. 5).
        costs: whether the data has costs.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int = 256,
        discount: float = 0.99,
        expectile: float = 0.8,
        costs: bool = False,
    ) -> None:
        super().__init__()
        self.latents = Normalizer(latent_dim)
        self.rewards = Normalizer(1)
        self.step = mlp(latent_dim + action_dim, hidden, 3)
        self.value = mlp(latent_dim, hidden, 1)

    def forward(self, latents: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Decoded latents (..., d) and actions (..., m) -> reward, continuation_logit, cost, value: (...)."""
        z = self.latents.normalize(latents)
        reward, continuation, cost = self.step(torch.cat([z, actions], -1)).unbind(-1)
        return {
            "reward": self.rewards.denormalize(reward[..., None])[..., 0],
            "continuation_logit": continuation,
            "cost": cost,
            "value": self.values(latents),
        }

    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """Mean return to expect from decoded latents (..., d) on: (...)."""
        return self.rewards.denormalize(self.value(self.latents.normalize(latents)))[..., 0]

    def scores(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Expected mean return of rollouts: latents (..., H, d), actions (..., H, m) -> (...); non-finite is -inf.

        (1 - g) sum_{k < H - 1} g^k c_k r_k + g^(H - 1) c_{H - 1} V(z_{H - 1}), c_k the probability of having come to k.
        """
        out = self(latents, actions)
        g = self.config["discount"]
        powers = g ** torch.arange(latents.shape[-2], device=latents.device, dtype=latents.dtype)
        alive = out["continuation_logit"].sigmoid().cumprod(-1).roll(1, -1)
        alive[..., 0] = 1
        discounted = powers * alive
        running = (1 - g) * (discounted * out["reward"])[..., :-1].sum(-1)
        score = running + discounted[..., -1] * out["value"][..., -1]
        return torch.where(score.isfinite(), score, -torch.inf)

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Batch of decoded steps: latents (B, d), actions (B, m), rewards, continuations, costs, return_to_go (B,)."""
        out = self(batch["latents"], batch["actions"])
        scale = self.rewards.std
        reward = ((out["reward"] - batch["rewards"]) / scale).square().mean()
        gap = (batch["return_to_go"] - out["value"]) / scale
        expectile = self.config["expectile"]
        value = (torch.where(gap > 0, expectile, 1 - expectile) * gap.square()).mean()
        continuation = binary_cross_entropy_with_logits(out["continuation_logit"], batch["continuations"])
        loss = reward + value + continuation
        parts = {"reward_loss": reward, "value_loss": value, "continuation_loss": continuation}
        if self.config["costs"]:
            parts["cost_loss"] = (out["cost"] - batch["costs"]).square().mean()
            loss = loss + parts["cost_loss"]
        else:
            loss = loss + 0 * out["cost"].sum()  # every parameter takes part, as DistributedDataParallel asks
        return {"loss": loss, **parts}
