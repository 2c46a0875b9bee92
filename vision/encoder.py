"""Encoders map a short history of observations to one latent."""

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
        latent_dim: int = 16,
        history: int = 5,
        projection: int = 128,
        hidden: int = 256,
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


class Representation(Model):
    """The encoder with its training heads.

    From the latents the heads predict the next latent, the reward, and the true state or the action. The heads get
    latents with noise. Each latent dimension has a learned noise scale, and the loss penalises each nat of information
    in the latents (a variational bottleneck, Alemi et al. 2017). This also fixes the scale of the latents.

    The action is predicted from the latents before and after it, and the second latent does not get this action. The
    latents then learn to represent the earlier actions: they help to predict the next action, but they are not part of
    the state. Therefore the action is predicted only if the data have no true states.

    Demonstrations without rewards have no target that depends on an object which is in the pictures alone. There a
    linear layer predicts the actions that follow, since these depend on it. Demonstrations are few, so the head could
    learn each picture by heart. Noise on the features of a frozen backbone prevents this, as a ridge penalty does
    (Bishop 1995). All frames of a history have the same noise, so movements stay visible.

    Args:
        encoder_config: arguments of the `PixelEncoder`.
        state_dim: dimension of the true states; 0: the data have none. A linear layer predicts them from the latents.
        ahead: K, the number of following actions that the latents predict, for demonstrations; 0: none.
        feature_noise: its standard deviation, in standard deviations of each feature; only with ahead.
        hidden: width of the two hidden layers of the other heads.
        shift: largest random shift in pixels, for a backbone that is trained (Yarats et al. 2022).
        state_weight: weight of the loss of the true states.
        information_weight: weight of a nat of information.
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        state_dim: int = 0,
        ahead: int = 0,
        feature_noise: float = 3.5,
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
        self.following = nn.Linear(d, ahead * action_dim) if ahead else None

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step.

        Returns:
            shift (B, 2) in pixels, noise of the latents (B, 2, d), and with `ahead` that of the features (B, C F).
        """
        s, d = self.config["shift"], self.encoder.config["latent_dim"]
        random = {
            "shift": torch.randint(-s, s + 1, (batch, 2), generator=generator),
            "noise": torch.randn(batch, 2, d, generator=generator),
        }
        if self.following is not None and not self.encoder.config["trainable"]:
            random["features"] = torch.randn(batch, self.encoder.picture_dim, generator=generator)
        return random

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for a batch of `FrameSteps`.

        The batch has `features` (B, history + 1, F) or, for a backbone that is trained, `frames_0`, `frames_1`, ...
        (B, history + 1, height, width, 3) of each camera and `measured` (B, history + 1, p), and `actions`
        (B, history, m), standardised `rewards` (B,) and `states` (B, s). The last action is the predicted one. With
        `ahead` it has the standardised actions `following` (B, K, m) and whether each is `known` (B, K).
        """
        features = batch["features"] if "features" in batch else self._features(batch, random["shift"])
        if self.training and "features" in random:
            features = self._noisy(features, random["features"])
        frames, actions = self.encoder.frames(features), batch["actions"]
        mean = self.encoder.join(frames[:, :-1], actions[:, :-1])
        with torch.no_grad():
            after = self.encoder.join(frames[:, 1:], actions[:, 1:])
        learned = self.encoder.learned_dim
        noise = self.log_noise.exp() * random["noise"]
        now, taken = mean + noise[:, 0], actions[:, -1]
        pair = torch.cat([now, taken], -1)
        parts = {
            "next": (now + self.next(pair) - after).square().mean(),
            "reward": (self.reward(pair)[:, 0] - batch["rewards"]).square().mean(),
            "information": self.config["information_weight"] * information(mean[:, :learned], self.log_noise[:learned]),
        }
        if self.inverse is not None:
            hidden = actions[:, 1:].clone()
            hidden[:, -1:] = 0
            blind = self.encoder.join(frames[:, 1:], hidden) + noise[:, 1]
            parts["inverse"] = (self.inverse(torch.cat([now, blind], -1)) - taken).square().mean()
        if self.state is not None:
            # linear above 0.05 standard deviations, so that states which are not visible in any frame (a pole outside
            # of the picture) do not dominate the loss
            error = smooth_l1_loss(self.state(now), batch["states"], beta=0.05)
            parts["state"] = self.config["state_weight"] * error
        if self.following is not None:
            error = (self.following(now).view_as(batch["following"]) - batch["following"]).square().mean(-1)
            # the action that is taken counts as much as all K together
            parts["following"] = error[:, 0].mean() + error[batch["known"]].mean()
        return {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]

    def _noisy(self, features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Features (B, n, C F + p), noise (B, C F) -> features with noise on those of the pictures."""
        pictures, measured = features.tensor_split([noise.shape[-1]], -1)
        noise = self.config["feature_noise"] * self.encoder.standard.std[: noise.shape[-1]] * noise
        return torch.cat([pictures + noise[:, None], measured], -1)

    def _features(self, batch: dict[str, torch.Tensor], shift: torch.Tensor) -> torch.Tensor:
        parts = []
        for number in range(self.encoder.config["cameras"]):
            frames = batch[f"frames_{number}"]
            shifted = random_shift(frames, shift)
            parts.append(self.encoder.features(shifted.flatten(0, 1)).unflatten(0, frames.shape[:2]))
        return torch.cat([*parts, batch["measured"]], -1)


def information(mean: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
    """Return the nats of information in latents with mean (B, d) and noise of standard deviation exp(log_noise) (d,).

    The information is KL(N(mean, noise^2) || N(0, 1)), summed over dimensions, mean over the batch.
    """
    return 0.5 * (mean.square() + (2 * log_noise).exp() - 1 - 2 * log_noise).sum(-1).mean()
