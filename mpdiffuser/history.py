"""The last observations and actions of robots, encoded as latents."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from mpdiffuser.action_scale import ActionScale
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, Record

Observations = np.ndarray | Mapping[str, np.ndarray]


def joined_features(
    record: Record, frame_encoder: Callable[[torch.Tensor], torch.Tensor], observations: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Observations name -> (B, ...) -> features (B, F): those of all pictures, then the vectors.

    Args:
        record: says which observations are pictures.
        frame_encoder: computes the features of the pictures of a camera, (B, height, width, 3) -> (B, F).
        observations: see above.
    """
    pictures = record.names(PICTURE)
    parts = [frame_encoder(observations[name]) for name in pictures]
    parts += [observations[name].float() for name in record.observations if name not in pictures]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def standing_latents(encoder: Any, features: torch.Tensor) -> torch.Tensor:
    """Return the latents (B, d) of features (B, F) that have not changed for a whole history."""
    history = encoder.history
    actions = features.new_zeros(len(features), history - 1, encoder.config["action_dim"])
    return encoder(features[:, None].expand(-1, history, *features.shape[1:]), actions)


class LatentHistory:
    """Encodes a stream of observations (B, ...) and actions (B, m) as latents (B, d).

    Each call computes the features of the newest observations only. At the start of an episode the first observations
    replace the missing ones, and the missing actions are 0, as in training.

    Args:
        encoder: see `MPDiffuserPipeline`.
        frame_encoder: computes the features of the pictures of a camera; None: the encoder's `features`.
        record: says which of several observations are pictures; None: there is one observation.
        scale: of the actions.
    """

    def __init__(
        self,
        encoder: ModelMixin,
        frame_encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        record: Record | None = None,
        scale: ActionScale | None = None,
    ) -> None:
        self.encoder, self.frame_encoder = encoder, frame_encoder or encoder.features
        self.record, self.scale = record, scale
        self.device = encoder.device
        self.reset()

    @classmethod
    def of(cls, pipeline: MPDiffuserPipeline, engine: str = "torch") -> "LatentHistory":
        """Return the history for a pipeline; `engine` computes the features of pictures."""
        return cls(pipeline.encoder, pipeline.networks.frame_encoder(engine), pipeline.record, pipeline.action_scale)

    def reset(self) -> None:
        """Clear the history, for new episodes."""
        self.features: torch.Tensor | None = None

    def _features(self, observations: Observations) -> torch.Tensor:
        """Observations (B, ...) -> features (B, F): those of all pictures, then the vectors."""
        # a copy, since the robot may write its next observation into the same array
        tensor = lambda x: torch.from_numpy(np.array(x, order="C")).to(self.device)  # noqa: E731
        if not isinstance(observations, Mapping):
            return self.frame_encoder(tensor(observations))
        assert self.record is not None
        return joined_features(
            self.record, self.frame_encoder, {name: tensor(part) for name, part in observations.items()}
        )

    def _actions(self, actions: np.ndarray) -> torch.Tensor:
        """Actions (..., m) in the data's units -> in [-1, 1]."""
        actions = np.array(actions, np.float32)
        return torch.from_numpy(self.scale.to_unit(actions) if self.scale else actions).to(self.device)

    @torch.inference_mode()
    def __call__(self, observations: Observations) -> torch.Tensor:
        """Add the newest observations (B, ...) to the history and return their latents (B, d)."""
        newest = self._features(observations)[:, None]
        history = self.encoder.history
        if self.features is None:
            self.features = newest.expand(-1, history, *newest.shape[2:])
            actions = torch.zeros(len(newest), history, self.encoder.config["action_dim"], device=self.device)
            self.actions, self.action = actions[:, 1:], actions[:, :1]
        else:
            self.features = torch.cat([self.features, newest], 1)[:, 1:]
            self.actions = torch.cat([self.actions, self.action], 1)[:, 1:]
        return self.encoder(self.features, self.actions)

    @torch.inference_mode()
    def standing(self, observations: Observations) -> torch.Tensor:
        """Return the latents (B, d) of observations (B, ...) that have not changed for a whole history."""
        return standing_latents(self.encoder, self._features(observations))

    def record_actions(self, actions: np.ndarray) -> None:
        """Record the actions (B, m) that are executed after the newest observations, in the data's units."""
        self.action = self._actions(actions)[:, None]

    @torch.inference_mode()
    def encode_future(self, observations: Observations, actions: np.ndarray) -> torch.Tensor:
        """Return latents (B, K, d) of K observations (B, K, ...) after actions (B, K, m). The history is unchanged."""
        assert self.features is not None
        batch, steps = actions.shape[:2]
        flat: Any = {"": observations} if not isinstance(observations, Mapping) else observations
        flat = {name: part.reshape(batch * steps, *part.shape[2:]) for name, part in flat.items()}
        flat = flat if isinstance(observations, Mapping) else flat[""]
        features = torch.cat([self.features, self._features(flat).unflatten(0, (batch, steps))], 1)
        taken = torch.cat([self.actions, self._actions(actions)], 1)
        history = self.encoder.history
        pairs = [(features[:, k : k + history], taken[:, k : k + history - 1]) for k in range(1, steps + 1)]
        return torch.stack([self.encoder(*pair) for pair in pairs], 1)
