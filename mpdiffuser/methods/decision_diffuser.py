"""Decision Diffuser (Ajay et al. 2023): it plans only states; an inverse dynamics model gives the actions."""

import torch
from diffusers.configuration_utils import register_to_config

from mpdiffuser.methods.base import Baseline, sampler_section
from mpdiffuser.methods.diffusion_policy import planner_arguments
from mpdiffuser.models.base import Model
from mpdiffuser.models.denoisers import Planner, weighted_error
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Marginals
from mpdiffuser.recipe import Recipe
from mpdiffuser.sampler import Sampler
from mpdiffuser.schedule import NoiseSchedule


class StatePlanner(Planner):
    """A planner that samples only states. Arguments and errors as `Planner`."""

    @staticmethod
    def columns(latent_dim: int) -> slice:
        """Return the columns of the states."""
        return slice(0, latent_dim)


class InverseDynamics(Model):
    """Estimates the normalised action between two normalised latents (section 3.2 of the paper).

    Args:
        latent_dim, action_dim: d, m.
        hidden: width of the two hidden layers.
    """

    @register_to_config
    def __init__(self, latent_dim: int, action_dim: int, hidden: int = 512) -> None:
        super().__init__()
        self.action = mlp(2 * latent_dim, hidden, action_dim)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, H, d) -> the actions between them (B, H - 1, m)."""
        return self.action(torch.cat([latents[:, :-1], latents[:, 1:]], -1))

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the weighted squared error of a batch of `Windows`. Only pairs of rows within the episode count."""
        actions = batch["actions"][:, :-1]
        weight = batch["mask"][:, 1:, None].expand_as(actions)
        return {"loss": weighted_error(self(batch["latents"]), actions, weight)}


class StateSampler(Sampler):
    """Samples states. The inverse dynamics model gives the action from each state to the next."""

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        """Fill the actions of x (B, H, d + m); the last action is repeated."""
        inverse = self.others["inverse"]
        d = inverse.config["latent_dim"]  # type: ignore[index]
        actions = inverse(x[..., :d]).clamp(self.low[d:], self.high[d:])
        return torch.cat([x[..., :d], torch.cat([actions, actions[:, -1:]], 1)], -1)


STATE_PLANNER = Recipe(
    "state_planner",
    StatePlanner,
    lambda data: StatePlanner(**planner_arguments(data)),
    {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3, "keep": "last"},
    sections=("planner",),
)
INVERSE = Recipe(
    "inverse",
    InverseDynamics,
    lambda data: InverseDynamics(**data.dims),
    {"steps": 4000, "batch_size": 64, "learning_rate": 1e-3},
)
LOGGED_RETURNS = Recipe("logged_returns", Marginals, lambda data: data.logged_condition, None)


class DecisionDiffuser(Baseline):
    """Plans states with classifier-free guidance. The target is the same high return in every state."""

    name = "decision_diffuser"
    label = "Decision Diffuser"
    color = ("#2f7d8c", "#74c0cf")
    summary = "A diffusion model of the states, given a high return; inverse dynamics gives the actions."
    order = 22
    needs_rewards = True
    models = (STATE_PLANNER, INVERSE, LOGGED_RETURNS)
    roles = {"condition": "logged_returns", "planner": "state_planner", "inverse": "inverse"}  # noqa: RUF012
    fixed = {"composition": "planner"}  # noqa: RUF012
    # target: a return from the lowest (0) to the highest (1) of the data; the paper scales the noise's variance by 0.5
    settings = sampler_section(steps=10, guidance=2.4, guidance_interval=[0.0, 1.0], target=0.9, temperature=0.7)
    sampler_class = StateSampler

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the condition (B, c) for latents (B, d).

        The target return is at `level` between the lowest and the highest return of the data. If the data have costs,
        the target cost_to_go is the lowest of the data.
        """
        low, high = (self.condition.denormalize(bound) for bound in self.condition.bounds())
        target = low.expand(len(latents), -1).clone()
        target[:, 0] += level * (high[0] - low[0])
        return self.condition.normalize(target)
