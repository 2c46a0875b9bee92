"""What the trainer needs of every model."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class Model(ModelMixin, ConfigMixin):
    """A network with its training loss. A subclass defines

        loss(batch, random, schedule) -> {"loss": scalar, ...}

    for a batch of its training data, the random numbers of `draw`, and the noise schedule.
    """

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """All random numbers of one training step, (batch, ...) each; none unless a model overrides this."""
        return {}

    def after_step(self) -> None:
        """Called after each optimiser step."""
