"""An end-to-end policy from pixels, for comparison: DrQ+BC (Lu et al. 2023) in the size of this project's networks.

TD3+BC (`mpdiffuser.methods.td3_bc`) whose latents come from a small convolutional network of its own. Only the loss of
Q trains that network, on frames with random shifts (Yarats et al. 2022). DrQ+BC has larger networks, returns over three
steps, and frames of 84 pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import register_to_config

from envs.datasets import import_datasets
from experiments.measuring import closed_loop
from mpdiffuser.controller import NetworkPolicy
from mpdiffuser.episodes import Episodes
from mpdiffuser.methods.td3_bc import TD3BC, TD3BCPolicy
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import unit_actions
from mpdiffuser.record import PICTURE
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import split_indices
from vision.data import FrameSteps, history_actions, history_rows
from vision.encoder import PixelEncoder
from vision.representation import input_features

HISTORY, LATENT, SHIFT = 3, 50, 3  # frames of a latent, its dimension, and the largest shift in pixels
TRAINING: dict[str, Any] = {
    "steps": 8000,
    "batch_size": 64,
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "clip": 1e6,
    "ema_decay": 0.995,
    "keep": "last",  # the losses change with the values, so the lowest is not the best
    "validate_every": 2000,
}


class Transitions(FrameSteps):
    """Steps with their last frames, the frame that follows, and the standardised reward.

    Args:
        episodes: the dataset.
        chosen: indices of the used episodes.
        scale: mean and standard deviation of the rewards; None: those of these episodes.
    """

    def __init__(self, episodes: Episodes, chosen: np.ndarray, scale: tuple[float, float] | None = None) -> None:
        super().__init__(episodes, chosen, HISTORY, None)
        self.index = history_rows(episodes, self.rows + 1, HISTORY + 1)
        self.actions = history_actions(episodes, self.index)
        rewards = episodes["rewards"][self.rows]
        self.scale = scale or (float(rewards.mean()), float(rewards.std()) + 1e-6)
        self.rewards = ((rewards - self.scale[0]) / self.scale[1]).astype(np.float32)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return frames (B, history + 1, height, width, 3), actions (B, history, m) and rewards (B,)."""
        return {**super().batch(indices), "rewards": torch.from_numpy(self.rewards[indices.numpy()])}


class FrameEncoder(PixelEncoder):
    """A small convolutional network on the last frames alone: the actions between them have no effect."""

    def join(self, frames: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Projections (..., history, F), actions (..., history - 1, m) -> latents (..., d)."""
        return super().join(frames, torch.zeros_like(actions))


class PixelPolicy(TD3BCPolicy):
    """TD3+BC with an encoder of its own.

    Args:
        action_dim: m.
        discount: g.
        latent_dim: d.
        hidden: width of the hidden layers of all heads.
    """

    @register_to_config
    def __init__(self, action_dim: int, discount: float = 0.99, latent_dim: int = LATENT, hidden: int = 256) -> None:
        settings = {name: value for name, value in TD3BC.settings.items() if name != "hidden"}
        super().__init__(latent_dim, action_dim, hidden, discount, **settings)
        self.encoder = FrameEncoder(
            "conv", 8, 8, action_dim, latent_dim, HISTORY, projection=LATENT, hidden=hidden, trainable=True
        )

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the shifts (B, 2) in pixels, and the noise on the target policy's actions."""
        shift = torch.randint(-SHIFT, SHIFT + 1, (batch, 2), generator=generator)
        return {"shift": shift, **super().draw(batch, schedule, generator)}

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the losses of TD3+BC for a batch of `Transitions`.

        Rewards are standardised, which does not change the best policy, since no episode ends early.
        """
        projected, actions = self.encoder.frames(input_features(self.encoder, batch, random)), batch["actions"]
        steps = {
            "latents": self.encoder.join(projected[:, :-1], actions[:, :-1]),
            "next_latents": self.encoder.join(projected[:, 1:], actions[:, 1:]).detach(),
            "actions": actions[:, -1],
            "rewards": batch["rewards"],
            "continuations": torch.ones_like(batch["rewards"]),
        }
        return super().loss(steps, random, schedule)


def train(episodes: Episodes, seed: int, folder: Path, validation: float = 0.1, **training: Any) -> PixelPolicy:
    """Train on episodes whose actions are in [-1, 1], or go on with a training in the folder."""
    torch.manual_seed(seed)
    model = PixelPolicy(episodes["actions"].shape[1])
    train, held_out = split_indices(len(episodes), validation, seed)
    data = Transitions(episodes, train)
    unseen = Transitions(episodes, held_out, data.scale)
    config = TrainConfig(**TRAINING | training, seed=seed)
    where = (config, folder, Accelerator(cpu=not torch.cuda.is_available()))
    return Trainer("end_to_end", model, data, unseen, *where, identity={"data": episodes.checksum()}).train()


def controlling(policy: PixelPolicy, info: dict[str, Any]) -> MPDiffuserPipeline:
    """Return a pipeline that has the policy's encoder alone."""
    normalizers = Normalizer(policy.config["latent_dim"]), Normalizer(policy.config["action_dim"])
    return MPDiffuserPipeline(policy.encoder, *normalizers, None, None, None, None, NoiseSchedule(), info=info)


def measure(
    data: Path, data_root: Path, seed: int, folder: Path, seeds: Sequence[int], **training: Any
) -> dict[str, Any]:
    """Train on a dataset, and return the metrics in its environment, one episode for each of `seeds`.

    Args:
        data: its files; they are imported into data_root.
        seed: of the training.
        folder: of the training.
        training: settings in place of those of `TRAINING`.
    """
    episodes, bounds = unit_actions(import_datasets(str(data), str(data_root)), "refuse")
    policy = train(episodes, seed, folder, **training)
    record = episodes.record.only(PICTURE).with_actions(bounds).to_json()
    pipeline = controlling(policy, {"environment": episodes.info["environment"], "record": record})
    return closed_loop(NetworkPolicy(pipeline, policy), pipeline, seeds, "end to end")
