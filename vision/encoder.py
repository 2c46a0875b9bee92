"""Encoders: a short history of observations to one latent vector."""

from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import smooth_l1_loss

from mpdiffuser.errors import InputError
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from vision.augment import random_shift
from vision.backbones import DEFAULT, Backbone, load_pretrained


class PixelEncoder(ModelMixin, ConfigMixin):
    """A backbone on each frame, and a trained head over the last `history` frames, since one frame has no velocity.

    Args:
        backbone, stride, pool: see `Backbone`.
        latent_dim: d.
        history: frames a latent is made from.
        projection, hidden: widths of the head's layers, for each frame and after the frames are joined.
        trainable: whether the backbone is fine-tuned; a frozen one's features are computed once and cached.
    """

    @register_to_config
    def __init__(
        self,
        backbone: str = DEFAULT,
        stride: int = 16,
        pool: int = 4,
        latent_dim: int = 16,
        history: int = 3,
        projection: int = 128,
        hidden: int = 256,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if history < 1:
            raise InputError(f"encoder.history: must be at least 1, found {history}")
        self.history = history
        self.frame_net = Backbone(backbone, stride, pool).requires_grad_(trainable)
        self.standard = Normalizer(self.frame_net.dim)
        self.frame_head = nn.Sequential(nn.Linear(self.frame_net.dim, projection), nn.LayerNorm(projection), nn.SiLU())
        self.head = mlp(history * projection, hidden, latent_dim)

    @classmethod
    def pretrained(cls, download: bool = False, **config: Any) -> Self:
        """A new encoder whose backbone has its pretrained weights; raises as `load_pretrained`."""
        encoder = cls(**config)
        load_pretrained(encoder.frame_net, encoder.config["backbone"], download)
        return encoder.eval()

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 -> features (B, F) of single frames."""
        return self.frame_net(frames)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of consecutive frames (..., history, F), the newest last -> latents (..., d)."""
        return self.head(self.frame_head(self.standard.normalize(features)).flatten(-2))

    def consecutive(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, history + 1, F) -> latents (B, d) now and one step later, each frame's part computed once."""
        frames = self.frame_head(self.standard.normalize(features))
        return self.head(frames[:, :-1].flatten(1)), self.head(frames[:, 1:].flatten(1))

    def train(self, mode: bool = True) -> Self:
        """The backbone's batch norms keep their statistics, also while it is fine-tuned."""
        super().train(mode)
        self.frame_net.eval()
        return self


class IdentityEncoder(ModelMixin, ConfigMixin):
    """States are their own latents.

    Args:
        latent_dim: dimension of the states.
    """

    history = 1

    @register_to_config
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # diffusers asks a module for its device and dtype through a parameter
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, d) -> (B, d)."""
        return states.to(torch.float32)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., 1, d) -> (..., d)"""
        return features[..., -1, :]


class Representation(ModelMixin, ConfigMixin):
    """What trains the encoder: latents must tell the action taken, the next latent, the reward, the true state.

    Args:
        encoder_config: of a `PixelEncoder`.
        action_dim: m.
        state_dim: of the true states, 0 where the data has none.
        state_weight: of the true states among the targets.
        shift: pixels of random shift, used where the backbone is trained (Yarats et al. 2022).
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        action_dim: int,
        state_dim: int = 0,
        hidden: int = 256,
        shift: int = 3,
        state_weight: float = 5.0,
    ) -> None:
        super().__init__()
        self.encoder = PixelEncoder(**encoder_config)
        d = self.encoder.config["latent_dim"]
        self.inverse = mlp(2 * d, hidden, action_dim)
        self.next = mlp(d + action_dim, hidden, d)
        self.reward = mlp(d + action_dim, hidden, 1)
        self.state = mlp(d, hidden, state_dim) if state_dim else None

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One shift for each example, the same for all its frames: (B, 2) pixels."""
        s = self.config["shift"]
        return {"shift": torch.randint(-s, s + 1, (batch, 2), generator=generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Batch of `Transitions`: features (B, history + 1, F) or frames (B, history + 1, height, width, 3); actions
        (B, m), rewards (B,), states (B, s), standardised."""
        features = batch["features"] if "features" in batch else self._features(batch["frames"], random["shift"])
        now, after = self.encoder.consecutive(features)
        pair = torch.cat([now, batch["actions"]], -1)
        parts = {
            "inverse": (self.inverse(torch.cat([now, after], -1)) - batch["actions"]).square().mean(),
            "next": (now + self.next(pair) - after).square().mean(),
            "reward": (self.reward(pair)[:, 0] - batch["rewards"]).square().mean(),
            "spread": spread_penalty(now),
        }
        if self.state is not None:
            # absolute beyond 0.05 deviations: what no frame shows (a pole out of view) must not drown what frames show
            error = smooth_l1_loss(self.state(now), batch["states"], beta=0.05)
            parts["state"] = self.config["state_weight"] * error
        return {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]

    def _features(self, frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        shifted = random_shift(frames, shift)
        return self.encoder.features(shifted.flatten(0, 1)).unflatten(0, frames.shape[:2])


def spread_penalty(latents: torch.Tensor) -> torch.Tensor:
    """Keeps the latents (B, d) from collapsing: unit deviation, no correlation (Bardes et al. 2022, eq. 1 and 4)."""
    centred = latents - latents.mean(0)
    deviation = (centred.square().mean(0) + 1e-4).sqrt()
    covariance = centred.T @ centred / len(latents)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return (1 - deviation).relu().square().mean() + 0.04 * off_diagonal.square().sum() / latents.shape[1]
