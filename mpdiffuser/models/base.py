"""Base class of the models that the trainer trains."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class Model(ModelMixin, ConfigMixin):
    """A network with its training loss. A subclass defines the method

        loss(batch, random, schedule) -> {"loss": scalar, ...}

    Its arguments are a batch of the training data, the random numbers of `draw`, and the noise schedule.
    """

    def draw(self, batch: int, schedule: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample all random numbers of one training step, each (batch, ...). The default is none."""
        return {}

    def after_step(self) -> None:
        """Update the model after an optimiser step. The trainer calls this; the default does nothing."""
