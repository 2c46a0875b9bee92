"""Encoders: a short history of observations to one latent vector."""

from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module
from torch import nn
from torch.nn.functional import smooth_l1_loss

from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from vision.augment import random_shift
from vision.backbones import DEFAULT, Backbone, load_pretrained


class PixelEncoder(Model):
    """A backbone on each frame, and a trained head over the last `history` frames and the actions between them.

    One frame shows no velocity. Two frames show their mean velocity, but not yet the effect of the last action.

    Args:
        backbone, stride, pool: see `Backbone`.
        action_dim: m.
        latent_dim: d.
        history: frames a latent is made from.
        projection, hidden: widths of the head's layers, for each frame and after the frames are joined.
        trainable: whether the backbone is fine-tuned; a frozen one's features are computed once and cached.
    """

    sees_pixels = True

    @register_to_config
    def __init__(
        self,
        backbone: str = DEFAULT,
        stride: int = 16,
        pool: int = 4,
        action_dim: int = 1,
        latent_dim: int = 16,
        history: int = 5,
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
        self.head = mlp(history * projection + (history - 1) * action_dim, hidden, latent_dim)

    @classmethod
    def pretrained(cls, download: bool = False, **config: Any) -> Self:
        """A new encoder whose backbone has its pretrained weights; raises as `load_pretrained`."""
        encoder = cls(**config)
        load_pretrained(encoder.frame_net, encoder.config["backbone"], download)
        return encoder.eval()

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 -> features (B, F) of single frames."""
        return self.frame_net(frames)

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Features of consecutive frames (..., history, F), the newest last, and the actions between them
        (..., history - 1, m), 0 where there was no earlier frame -> latents (..., d)."""
        return self.join(self.frames(features), actions)

    def frames(self, features: torch.Tensor) -> torch.Tensor:
        """Each frame's part of the head: (..., F) -> (..., projection)."""
        return self.frame_head(self.standard.normalize(features))

    def join(self, frames: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(..., history, projection) of `frames` and the actions between them (..., history - 1, m) -> (..., d)."""
        return self.head(torch.cat([frames.flatten(-2), actions.flatten(-2)], -1))

    def train(self, mode: bool = True) -> Self:
        """The backbone's batch norms keep their statistics, also while it is fine-tuned."""
        super().train(mode)
        self.frame_net.eval()
        return self


class IdentityEncoder(Model):
    """States are their own latents.

    Args:
        latent_dim: dimension of the states.
        action_dim: m.
    """

    history = 1
    sees_pixels = False

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int = 1) -> None:
        super().__init__()
        # diffusers asks a module for its device and dtype through a parameter
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, d) -> (B, d)."""
        return states.to(torch.float32)

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(..., 1, d), and no action (..., 0, m) -> (..., d)"""
        return features[..., -1, :]


class Representation(Model):
    """Trains the encoder: from the latents it predicts the next latent, the reward, and the true state or the action.

    Predictions see the latents through noise, with a learned amount for each dimension, and each nat of information has
    a price (a variational bottleneck, Alemi et al. 2017). This also fixes the latents' scale.
    The action is predicted from the frames around it, so it is hidden from the latents. The latents still come to hold
    the earlier actions, which predict it by habit and are not state. Therefore the action is predicted only where the
    data hold no true states.

    Args:
        encoder_config: of a `PixelEncoder`.
        state_dim: of the true states, 0 where the data have none; a linear map predicts them from the latents.
        state_weight: of the true states among the targets.
        information_weight: price of a nat.
        shift: pixels of random shift, used where the backbone is trained (Yarats et al. 2022).
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        state_dim: int = 0,
        hidden: int = 256,
        shift: int = 3,
        state_weight: float = 5.0,
        information_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        self.encoder = PixelEncoder(**encoder_config)
        d, action_dim = self.encoder.config["latent_dim"], self.encoder.config["action_dim"]
        self.log_noise = nn.Parameter(torch.full((d,), -2.0))
        self.inverse = None if state_dim else mlp(2 * d, hidden, action_dim)
        self.next = mlp(d + action_dim, hidden, d)
        self.reward = mlp(d + action_dim, hidden, 1)
        self.state = nn.Linear(d, state_dim) if state_dim else None

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One shift for each example, the same for all its frames, (B, 2) pixels; noise (B, 2, d) of the latents."""
        s, d = self.config["shift"], self.encoder.config["latent_dim"]
        return {
            "shift": torch.randint(-s, s + 1, (batch, 2), generator=generator),
            "noise": torch.randn(batch, 2, d, generator=generator),
        }

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Batch of `FrameSteps`: features (B, history + 1, F) or frames (B, history + 1, height, width, 3); the
        actions between them (B, history, m), the last of them the one to predict; rewards (B,), states (B, s),
        standardised."""
        features = batch["features"] if "features" in batch else self._features(batch["frames"], random["shift"])
        frames, actions = self.encoder.frames(features), batch["actions"]
        mean = self.encoder.join(frames[:, :-1], actions[:, :-1])
        with torch.no_grad():
            after = self.encoder.join(frames[:, 1:], actions[:, 1:])
        noise = self.log_noise.exp() * random["noise"]
        now, taken = mean + noise[:, 0], actions[:, -1]
        pair = torch.cat([now, taken], -1)
        parts = {
            "next": (now + self.next(pair) - after).square().mean(),
            "reward": (self.reward(pair)[:, 0] - batch["rewards"]).square().mean(),
            "information": self.config["information_weight"] * information(mean, self.log_noise),
        }
        if self.inverse is not None:
            hidden = actions[:, 1:].clone()
            hidden[:, -1:] = 0
            blind = self.encoder.join(frames[:, 1:], hidden) + noise[:, 1]
            parts["inverse"] = (self.inverse(torch.cat([now, blind], -1)) - taken).square().mean()
        if self.state is not None:
            # absolute beyond 0.05 deviations, so that states which no frame shows (a pole out of view) do not dominate
            error = smooth_l1_loss(self.state(now), batch["states"], beta=0.05)
            parts["state"] = self.config["state_weight"] * error
        return {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]

    def _features(self, frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        shifted = random_shift(frames, shift)
        return self.encoder.features(shifted.flatten(0, 1)).unflatten(0, frames.shape[:2])


def information(mean: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
    """Nats in latents (B, d) with noise of deviation exp(log_noise) (d,): KL(N(mean, noise^2) || N(0, 1))."""
    return 0.5 * (mean.square() + (2 * log_noise).exp() - 1 - 2 * log_noise).sum(-1).mean()
