"""Models that train an encoder: with the true states of the data, or without."""

from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.functional import smooth_l1_loss

from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from vision.augment import random_shift
from vision.encoder import PixelEncoder


def input_features(
    encoder: PixelEncoder, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return the features (B, history, C F + p) of a batch of `FrameSteps`.

    Args:
        encoder: computes the features of frames, for a backbone that is trained.
        batch: see `FrameSteps.batch`.
        random: with frames, their `shift` (B, 2) in pixels.
    """
    if "features" in batch:
        return batch["features"]
    parts = []
    for number in range(encoder.config["cameras"]):
        frames = batch[f"frames_{number}"]
        shifted = random_shift(frames, random["shift"])
        parts.append(encoder.features(shifted.flatten(0, 1)).unflatten(0, frames.shape[:2]))
    return torch.cat([*parts, batch["measured"]], -1)


class EncoderTraining(Model):
    """A model with an `encoder` in training. A subclass defines the loss; its configuration has `shift`."""

    encoder: PixelEncoder

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step: the shift (B, 2) in pixels."""
        s = self.config["shift"]
        return {"shift": torch.randint(-s, s + 1, (batch, 2), generator=generator)}


class StateEstimator(EncoderTraining):
    """An encoder whose latents are estimates of the true states, which the data have.

    The learned entries of a latent are the true state, standardised. The other models can be trained on the true
    states themselves (`exact`). The encoder's latents have errors, and a model that is trained on latents with errors
    reacts too weakly to the state (regression dilution).

    Args:
        encoder_config: arguments of the `PixelEncoder`; the number of learned entries is that of the true states.
        shift: largest random shift in pixels, for a backbone that is trained (Yarats et al. 2022).
    """

    @register_to_config
    def __init__(self, encoder_config: dict[str, Any], shift: int = 3) -> None:
        super().__init__()
        self.encoder = PixelEncoder(**encoder_config)
        self.states = Normalizer(self.encoder.learned_dim)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Return the loss of a batch of `FrameSteps` with true `states` (B, s).

        The error counts linearly above 0.05 standard deviations, so that states which are not visible in any frame (a
        pole outside of the picture) do not dominate the loss.
        """
        features = input_features(self.encoder, batch, random)
        latents = self.encoder(features, batch["actions"])[:, : self.encoder.learned_dim]
        return {"loss": smooth_l1_loss(latents, self.states.normalize(batch["states"]), beta=0.05)}

    @torch.no_grad()
    def exact(self, latents: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return latents (M, d) of the encoder with the true states (M, s) in place of their estimates."""
        learned = self.states.normalize(torch.from_numpy(np.array(states)).to(self.device)).cpu().numpy()
        return np.concatenate([learned, latents[:, self.encoder.learned_dim :]], -1)


class WorldModel(EncoderTraining):
    """An encoder and a world model in its latents (Ha and Schmidhuber 2018), for data without true states.

    The latent of a step is unrolled: a network adds the effect of each following action. From each latent on the way,
    heads predict the picture of that time, as main components of its features, and the reward. So a latent has what the
    next pictures depend on, such as velocities. It has them precisely, since an error of a velocity grows with time.

    The heads get latents with noise. Each latent dimension has a learned noise scale, and the loss penalises each nat
    of information in the latents (a variational bottleneck, Alemi et al. 2017). This also fixes the scale of the
    latents.

    Demonstrations without rewards show what matters by the actions alone. There a linear layer predicts the actions
    that follow. Demonstrations are few, so the head could learn each picture by heart. Noise on the features of a
    frozen backbone prevents this, as a ridge penalty does (Bishop 1995). All frames of a history have the same noise,
    so movements stay visible.

    Args:
        encoder_config: arguments of the `PixelEncoder`.
        targets: P, the width of `targets` in a batch.
        unroll_steps: J, the number of actions over which a latent is unrolled.
        ahead: K, the number of following actions that the latents predict, for demonstrations; 0: none.
        feature_noise: its standard deviation, in standard deviations of each feature; only with ahead.
        hidden: width of the two hidden layers of the other heads.
        shift: largest random shift in pixels, for a backbone that is trained (Yarats et al. 2022).
        target_weight: weight of the error of the targets.
        information_weight: weight of a nat of information.
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        targets: int,
        unroll_steps: int = 8,
        ahead: int = 0,
        feature_noise: float = 3.5,
        hidden: int = 256,
        shift: int = 3,
        target_weight: float = 4.0,
        information_weight: float = 1e-4,
    ) -> None:
        super().__init__()
        self.encoder = PixelEncoder(**encoder_config)
        d, action_dim = self.encoder.config["latent_dim"], self.encoder.config["action_dim"]
        self.log_noise = nn.Parameter(torch.full((d,), -2.0))
        self.change = mlp(d + action_dim, hidden, d)
        self.picture = mlp(d, hidden, targets)
        self.reward = mlp(d + action_dim, hidden, 1)
        self.following = nn.Linear(d, ahead * action_dim) if ahead else None

    @property
    def future(self) -> int:
        """The number of following actions in a batch: the larger of J and K."""
        return max(self.config["unroll_steps"], self.config["ahead"])

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step.

        Returns:
            shift (B, 2) in pixels, noise of the latents (B, d), and with `ahead` that of the features (B, C F).
        """
        random = super().draw(batch, schedule, generator)
        random["noise"] = torch.randn(batch, self.encoder.config["latent_dim"], generator=generator)
        if self.following is not None and not self.encoder.config["trainable"]:
            random["features"] = torch.randn(batch, self.encoder.picture_dim, generator=generator)
        return random

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: Any
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for a batch of `FrameSteps` with `future`; shapes: `FrameSteps.batch`.

        The part `picture` is linear in errors above 0.1, `reward` and `following` are squared errors.
        """
        features = input_features(self.encoder, batch, random)
        if self.training and "features" in random:
            features = self._noisy(features, random["features"])
        mean = self.encoder(features, batch["actions"])
        now = mean + self.log_noise.exp() * random["noise"]
        steps, learned = self.config["unroll_steps"], self.encoder.learned_dim
        actions, known = batch["following"][:, :steps], batch["known"][:, :steps]
        latents = self.unroll(now, actions)
        errors = smooth_l1_loss(self.picture(latents), batch["targets"][:, : steps + 1], beta=0.1, reduction="none")
        rewards = self.reward(torch.cat([latents[:, :-1], actions], -1))[..., 0]
        seen = torch.cat([known[:, :1], known], 1)  # the present picture, and that after each known action
        parts = {
            "picture": self.config["target_weight"] * errors[seen].mean(),
            "reward": (rewards - batch["rewards"][:, :steps])[known].square().mean(),
            "information": self.config["information_weight"] * information(mean[:, :learned], self.log_noise[:learned]),
        }
        if self.following is not None:
            actions, known = (batch[name][:, : self.config["ahead"]] for name in ("following", "known"))
            error = (self.following(now).view_as(actions) - actions).square().mean(-1)
            # the action that is taken counts as much as all K together
            parts["following"] = error[:, 0].mean() + error[known].mean()
        return {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]

    def unroll(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Latents (B, d), standardised actions (B, J, m) -> latents (B, J + 1, d) before, between and after them."""
        unrolled = [latents]
        for action in actions.unbind(1):
            unrolled.append(unrolled[-1] + self.change(torch.cat([unrolled[-1], action], -1)))
        return torch.stack(unrolled, 1)

    def _noisy(self, features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Features (B, n, C F + p), noise (B, C F) -> features with noise on those of the pictures."""
        pictures, measured = features.tensor_split([noise.shape[-1]], -1)
        noise = self.config["feature_noise"] * self.encoder.standard.std[: noise.shape[-1]] * noise
        return torch.cat([pictures + noise[:, None], measured], -1)


def information(mean: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
    """Return the nats of information in latents with mean (B, d) and noise of standard deviation exp(log_noise) (d,).

    The information is KL(N(mean, noise^2) || N(0, 1)), summed over dimensions, mean over the batch.
    """
    return 0.5 * (mean.square() + (2 * log_noise).exp() - 1 - 2 * log_noise).sum(-1).mean()
