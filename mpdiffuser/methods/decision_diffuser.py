"""Decision Diffuser (Ajay et al. 2023): plans of the states alone, with the actions from inverse dynamics."""

import torch
from diffusers.configuration_utils import register_to_config

from mpdiffuser.methods.base import Baseline, Recipe, drawing
from mpdiffuser.methods.diffusion_policy import planner_arguments
from mpdiffuser.models.base import Model
from mpdiffuser.models.denoisers import Planner, weighted_error
from mpdiffuser.models.mlp import mlp
from mpdiffuser.models.normalizer import Marginals
from mpdiffuser.sampler import Sampler
from mpdiffuser.schedule import NoiseSchedule


class StatePlanner(Planner):
    """A planner of the states alone. Arguments and errors as `Planner`."""

    @staticmethod
    def columns(latent_dim: int) -> slice:
        return slice(0, latent_dim)


class InverseDynamics(Model):
    """The normalised action between two normalised latents (section 3.2 of the paper).

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
        """Squared error of a batch of `Windows`."""
        actions = batch["actions"][:, :-1]
        weight = batch["action_mask"][:, :-1, None].expand_as(actions)
        return {"loss": weighted_error(self(batch["latents"]), actions, weight)}


class StateSampler(Sampler):
    """Draws states. Inverse dynamics gives the action from each state to the next; the last action is repeated."""

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        inverse = self.others["inverse"]
        d = inverse.config["latent_dim"]  # type: ignore[index]
        actions = inverse(x[..., :d]).clamp(self.low[d:], self.high[d:])
        return torch.cat([x[..., :d], torch.cat([actions, actions[:, -1:]], 1)], -1)


STATE_PLANNER = Recipe(
    "state_planner",
    StatePlanner,
    lambda data: StatePlanner(**planner_arguments(data)),
    {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3},
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
    """Classifier-free guidance towards a high return, the same in every state."""

    name = "decision_diffuser"
    label = "Decision Diffuser"
    color = ("#2f7d8c", "#74c0cf")
    summary = "A diffusion model of the states, given a high return; inverse dynamics gives the actions."
    order = 22
    models = (STATE_PLANNER, INVERSE, LOGGED_RETURNS)
    roles = {"condition": "logged_returns", "planner": "state_planner", "inverse": "inverse"}  # noqa: RUF012
    fixed = {"composition": "planner"}  # noqa: RUF012
    # target: the return to ask for, from the data's least (0) to its largest (1); the paper scales the variance by 0.5
    settings = drawing(guidance=1.2, guidance_interval=[0.0, 1.0], target=0.9, temperature=0.7)
    sampler_class = StateSampler

    def target(
        self, latents: torch.Tensor, level: float | torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The condition (B, c): the return at `level` between the data's least and largest return, and the least
        cost_to_go where the data have costs."""
        low, high = (self.condition.denormalize(bound) for bound in self.condition.bounds())
        target = low.expand(len(latents), -1).clone()
        target[:, 0] += level * (high[0] - low[0])
        return self.condition.normalize(target)
