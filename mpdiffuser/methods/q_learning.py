"""What the methods with twin action values share: their training, and a policy that acts without planning."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from mpdiffuser.controller import NetworkPolicy, Policy
from mpdiffuser.methods.base import Method, Setup
from mpdiffuser.models.twin_q import TwinQ
from mpdiffuser.recipe import Recipe, TrainingData
from mpdiffuser.windows import NextSteps


class QLearning(Method):
    """A method of offline Q-learning. A subclass has the name of its model's `method`.

    Attributes:
        kind: class of the model, whose forward pass is the policy.
    """

    kind: ClassVar[type[Any]]
    needs_rewards = True

    @classmethod
    def check_settings(cls, section: Mapping[str, Any]) -> None:
        """Raise InputError for a setting that is not allowed."""
        with torch.device("meta"):  # the constructor checks its arguments
            cls.kind(1, 1, discount=0.99, **section)

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return the trained policy."""
        return NetworkPolicy(setup.pipeline, setup.model(cls.name, cls.kind))


def recipe(kind: type[Any], learning_rate: float = 3e-4) -> Recipe:
    """Return the recipe of a subclass of `TwinQ`, which is trained on all transitions."""
    section = f"baselines.{kind.method}"

    def build(data: TrainingData) -> TwinQ:
        model = kind(**data.dims, discount=data.discount, **data.settings[section])
        model.fit_to(data.parts[0])
        return model

    training = {
        "steps": 20000,
        "batch_size": 256,
        "learning_rate": learning_rate,
        "weight_decay": 0.0,
        "clip": 1e6,
        "ema_decay": 0.995,
        "keep": "last",  # the losses change with the values, so the lowest is not the best
    }
    examples = lambda data, part: NextSteps(data.parts[part], data.logged_targets[part][:, 0])  # noqa: E731
    return Recipe(kind.method, kind, build, training, examples, sections=(section,))
