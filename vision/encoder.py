"""Encoders map a short history of observations to one latent."""

from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module
from torch import nn

from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from vision.backbones import DEFAULT, Backbone, load_pretrained


class PixelEncoder(Model):
    """A backbone for each frame, and a trained head for the last `history` frames and the actions between them.

    One frame does not show velocities. Two frames show a mean velocity, but not the effect of the last action. Measured
    values beside the pictures are inputs of the head, and the newest are also the last entries of the latent.

    Args:
        backbone, stride, pool: see `Backbone`.
        action_dim: m.
        latent_dim: d, the learned entries and p measured ones.
        history: number of frames for a latent.
        projection: width of the head's layer for each frame.
        hidden: width of the head's layers for the joined frames.
        trainable: whether the backbone is fine-tuned. The features of a frozen backbone are computed once and cached.
        cameras: C, the number of pictures in an observation. All pictures share the backbone.
        proprioception: p, the number of measured values beside the pictures; 0: none.

    Raises:
        InputError: for a size below 1, a latent_dim that leaves no learned entry, and as `Backbone`.
    """

    sees_pixels = True

    @register_to_config
    def __init__(
        self,
        backbone: str = DEFAULT,
        stride: int = 16,
        pool: int = 4,
        action_dim: int = 1,
        latent_dim: int = 32,
        history: int = 5,
        projection: int = 256,
        hidden: int = 512,
        trainable: bool = False,
        cameras: int = 1,
        proprioception: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "history": history, "projection": projection, "hidden": hidden}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"encoder.{name}: must be at least 1, found {size}")
        if latent_dim <= proprioception:
            raise InputError(f"encoder.latent_dim: must be above {proprioception}, found {latent_dim}")
        self.history, self.learned_dim = history, latent_dim - proprioception
        self.frame_net = Backbone(backbone, stride, pool).requires_grad_(trainable)
        self.picture_dim = cameras * self.frame_net.dim
        self.standard = Normalizer(self.picture_dim + proprioception)
        self.frame_head = nn.Sequential(nn.Linear(self.picture_dim, projection), nn.LayerNorm(projection), nn.SiLU())
        joined = history * (projection + proprioception) + (history - 1) * action_dim
        self.head = mlp(joined, hidden, self.learned_dim)

    @classmethod
    def pretrained(cls, download: bool = False, **config: Any) -> Self:
        """Build an encoder whose backbone has pretrained weights.

        Args:
            download: see `load_pretrained`.
            config: arguments of the encoder.

        Raises:
            InputError: as `load_pretrained`.
        """
        encoder = cls(**config)
        load_pretrained(encoder.frame_net, encoder.config["backbone"], download)
        return encoder.eval()

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 of one camera -> features of each frame (B, F)."""
        return self.frame_net(frames)

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Features (..., history, C F + p), actions (..., history - 1, m) -> latents (..., d).

        The features are those of consecutive observations, the newest last: of the frames of all C cameras, then p
        measured values. The actions are those between the frames, 0
        before the start of the episode.
        """
        return self.join(self.frames(features), actions)

    def frames(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., C F + p) -> projections (..., projection + p): the part of the head for each observation."""
        features = self.standard.normalize(features)
        projected = self.frame_head(features[..., : self.picture_dim])
        measured = features[..., self.picture_dim :]
        return torch.cat([projected, measured], -1) if measured.shape[-1] else projected

    def join(self, frames: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Projections (..., history, projection + p), actions (..., history - 1, m) -> latents (..., d)."""
        learned = self.head(torch.cat([frames.flatten(-2), actions.flatten(-2)], -1))
        measured = frames[..., -1, frames.shape[-1] - self.config["proprioception"] :]
        return torch.cat([learned, measured], -1) if measured.shape[-1] else learned

    def train(self, mode: bool = True) -> Self:
        """Set the training mode. The backbone stays in eval mode, so its batch norms keep their statistics."""
        super().train(mode)
        self.frame_net.eval()
        return self


class IdentityEncoder(Model):
    """An encoder of states: the latent is the last `history` states, the newest last, then the actions between them.

    Args:
        latent_dim: dimension of the latents: history o + (history - 1) m.
        action_dim: m.
        history: number of states in a latent.
    """

    sees_pixels = False

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int = 1, history: int = 1) -> None:
        super().__init__()
        self.history = history
        # diffusers gets the device and dtype of a module from a parameter
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, o) -> states (B, o) float32."""
        return states.to(torch.float32)

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """States (..., history, o), actions (..., history - 1, m) -> latents (..., d)."""
        return torch.cat([features.flatten(-2), actions.flatten(-2)], -1)
