"""The ranker: what a decoded rollout is worth."""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch.nn.functional import binary_cross_entropy_with_logits

from mpdiffuser.errors import InputError
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.schedule import NoiseSchedule


class Ranker(ModelMixin, ConfigMixin):
    """Reward, continuation and cost of each step, and the value of where a rollout ends.

    It works on decoded rollouts, in the encoder's own space. Returns are means: (1 - g) sum_k g^k r_k, so a value has
    the unit of a reward whatever the discount g.

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
        discount: g.
        quantiles: of the returns seen from a state, how many are learnt (Dabney et al. 2018).
        optimism: which of them the value of where a rollout ends stands for (0.5 = the median; towards 1 = what the
            best episodes got from there).
        costs: whether the data has costs.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: int = 256,
        discount: float = 0.99,
        quantiles: int = 20,
        optimism: float = 0.9,
        costs: bool = False,
    ) -> None:
        super().__init__()
        if quantiles < 2:
            raise InputError(f"ranker.quantiles: must be at least 2, found {quantiles}")
        if not 0 < optimism < 1:
            raise InputError(f"ranker.optimism: must lie between 0 and 1, found {optimism}")
        self.latents = Normalizer(latent_dim)
        self.rewards = Normalizer(1)
        self.returns = Marginals(1)
        self.step = mlp(latent_dim + action_dim, hidden, 3)
        self.value = mlp(latent_dim, hidden, quantiles)

    def forward(self, latents: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Decoded latents (..., d) and actions (..., m) -> reward, continuation_logit, cost of each step: (...)."""
        inputs = torch.cat([self.latents.normalize(latents), actions], -1)
        reward, continuation, cost = self.step(inputs).unbind(-1)
        return {
            "reward": self.rewards.denormalize(reward[..., None])[..., 0],
            "continuation_logit": continuation,
            "cost": cost,
        }

    def quantiles(self, latents: torch.Tensor) -> torch.Tensor:
        """Of the mean return from decoded latents (..., d) on: (..., K), ranked among the data's returns (`Marginals`),
        in the network's order; the k-th has level (k + 1/2) / K."""
        return self.value(self.latents.normalize(latents))

    def quantile(self, latents: torch.Tensor, level: float) -> torch.Tensor:
        """The mean return from decoded latents (..., d) on that the share `level` of the data stays below: (...)."""
        known = self.quantiles(latents).sort(-1).values
        place = min(max(level * known.shape[-1] - 0.5, 0.0), known.shape[-1] - 1.0)
        below = min(int(place), known.shape[-1] - 2)
        between = torch.lerp(known[..., below], known[..., below + 1], place - below)
        return self.returns.denormalize(between[..., None])[..., 0]

    @torch.inference_mode()
    def worth(self, latents: np.ndarray) -> np.ndarray:
        """The value of each of many decoded latents (M, d), at the level `optimism`: (M,)."""
        rows = torch.from_numpy(np.array(latents, np.float32)).to(self.device).split(16_384)
        return torch.cat([self.quantile(part, self.config["optimism"]) for part in rows]).cpu().numpy()

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
        value = self.quantile(latents[..., -1, :], self.config["optimism"])
        score = running + discounted[..., -1] * value
        return torch.where(score.isfinite(), score, -torch.inf)

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Batch of decoded steps: latents (B, d), actions (B, m), rewards, continuations, costs, return_to_go (B,)."""
        out = self(batch["latents"], batch["actions"])
        reward = ((out["reward"] - batch["rewards"]) / self.rewards.std).square().mean()
        gap = self.returns.normalize(batch["return_to_go"][:, None]) - self.quantiles(batch["latents"])
        levels = (torch.arange(gap.shape[-1], device=gap.device) + 0.5) / gap.shape[-1]
        value = torch.maximum(levels * gap, (levels - 1) * gap).mean()  # Koenker and Bassett 1978
        continuation = binary_cross_entropy_with_logits(out["continuation_logit"], batch["continuations"])
        loss = reward + value + continuation
        parts = {"reward_loss": reward, "value_loss": value, "continuation_loss": continuation}
        if self.config["costs"]:
            parts["cost_loss"] = (out["cost"] - batch["costs"]).square().mean()
            loss = loss + parts["cost_loss"]
        else:
            loss = loss + 0 * out["cost"].sum()  # every parameter takes part, as DistributedDataParallel asks
        return {"loss": loss, **parts}
