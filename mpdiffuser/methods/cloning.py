"""Behaviour cloning: a network that imitates the actions in the data."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from mpdiffuser.controller import NetworkPolicy, Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.methods.base import Method, Setup
from mpdiffuser.models.base import Model
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.recipe import Fit, Recipe, TrainingData
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.windows import Steps


class CloningPolicy(Model):
    """A deterministic policy on latents, trained with the mean squared error (the mean of a Gaussian policy).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
    """

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.latents = Normalizer(latent_dim)
        self.policy = mlp(latent_dim, hidden, action_dim)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decoded latents (B, d) -> actions (B, m) in [-1, 1]."""
        return self.policy(self.latents.normalize(latents)).tanh()

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the mean squared error of a batch of `Steps`: latents (B, d), actions (B, m)."""
        return {"loss": (self(batch["latents"]) - batch["actions"]).square().mean()}


def build(data: TrainingData) -> CloningPolicy:
    """Build an untrained policy with fitted normalisers."""
    policy = CloningPolicy(**data.dims)
    policy.latents.fit(data.parts[0]["observations"])
    return policy


def steps(episodes: Episodes) -> Steps:
    """Return all steps of the episodes. Their returns are zeros, since cloning does not use them."""
    return Steps(episodes, np.zeros(len(episodes["rewards"]), np.float32))


def within_limit(parts: Sequence[Episodes], limit: float) -> list[Episodes]:
    """Return the episodes of each part that cost at most `limit`; if there are none, the cheapest episodes."""
    totals = [np.add.reduceat(np.asarray(part["costs"], np.float64), part.offsets[:-1]) for part in parts]
    return [part.select(np.flatnonzero(cost <= max(limit, cost.min()))) for part, cost in zip(parts, totals)]


def recipe(limit: float | None = None) -> Recipe:
    """Return the recipe of a policy that imitates all episodes, or the episodes within a limit on costs."""
    name = "cloning" if limit is None else f"cloning_within_{limit:g}"

    def fit_within(fit: Fit, policy: CloningPolicy, data: TrainingData) -> CloningPolicy:
        parts = data.parts if limit is None else within_limit(data.parts, limit)
        return fit(name, policy, *(steps(part) for part in parts))

    training = {"steps": 4000, "batch_size": 256, "learning_rate": 3e-4}
    return Recipe(name, CloningPolicy, build, training, section="cloning", own_seed=False, fit_with=fit_within)


class Cloning(Method):
    """Behaviour cloning with a perceptron. With a limit on costs, it imitates only the episodes within the limit."""

    name = "cloning"
    label = "behaviour cloning"
    color = ("#3d8b5f", "#6fc295")
    summary = "A network that imitates the data's actions, without planning."
    order = 10
    models = (recipe(),)
    takes_limits = True

    @classmethod
    def recipes(cls, limits: Sequence[float] = ()) -> tuple[Recipe, ...]:
        """Return one recipe for all episodes, and one for each cost limit."""
        return (*cls.models, *map(recipe, limits))

    @classmethod
    def policy(cls, setup: Setup) -> Policy:
        """Return the policy of the setup's cost limit."""
        network = setup.model(recipe(setup.limit).name, CloningPolicy)
        return NetworkPolicy(setup.pipeline, network)
