"""Diffuser (Janner et al. 2022): an unconditional model of trajectories, guided by the gradient of a return model."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mpdiffuser.methods.base import Baseline, sampler_section
from mpdiffuser.methods.diffusion_policy import planner_arguments
from mpdiffuser.models.base import Model
from mpdiffuser.models.denoisers import Planner, hold, levels_and_noise
from mpdiffuser.models.unet import LevelEmbedding, ResidualBlock, check_horizon
from mpdiffuser.recipe import Recipe, TrainingData
from mpdiffuser.sampler import Sampler
from mpdiffuser.schedule import NoiseSchedule


class ReturnModel(Model):
    """J(x_t, t): predicts the normalised return_to_go from a noisy trajectory (section 3.2 of the paper).

    The network is the contracting half of the planner's U-Net and a linear layer.

    Args:
        latent_dim, action_dim, horizon: d, m, H.
        width, multipliers, embedding: as in the planner.

    Raises:
        InputError: for a horizon that is not allowed.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        horizon: int,
        width: int,
        multipliers: Sequence[int],
        embedding: int,
    ) -> None:
        super().__init__()
        check_horizon(horizon, multipliers)
        widths = [width * m for m in multipliers]
        pairs = zip([width, *widths[:-1]], widths)
        self.level = LevelEmbedding(embedding)
        self.enter = nn.Conv1d(latent_dim + action_dim, width, 1)
        self.blocks = nn.ModuleList([ResidualBlock(a, b, embedding, 5) for a, b in pairs])
        self.shrink = nn.ModuleList([nn.Conv1d(c, c, 3, stride=2, padding=1) for c in widths[:-1]])
        left = horizon // 2 ** (len(widths) - 1)
        self.leave = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * left, 1))

    def forward(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Noisy x (B, H, d + m), levels (B,) -> normalised return_to_go (B,)."""
        embedding, hidden = self.level(levels), self.enter(x.transpose(1, 2))
        for block, shrink in zip(self.blocks, [*self.shrink, nn.Identity()]):
            hidden = shrink(block(hidden, block.film(embedding)))  # type: ignore[operator]
        return self.leave(hidden)[:, 0]

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step: levels (B,), noise (B, H, d + m)."""
        return levels_and_noise(self.config, batch, schedule, generator)

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the squared error of the return for a batch of `Windows` with noise."""
        clean = torch.cat([batch["latents"], batch["actions"]], -1)
        noisy = hold(schedule.add_noise(clean, random["noise"], random["levels"]), batch["latents"][:, 0])
        return {"loss": (self(noisy, random["levels"]) - batch["condition"][:, 0]).square().mean()}


class GuidedSampler(Sampler):
    """Samples from p(x) exp(g J(x)): at each level D = D_p + g sigma^2 / alpha grad J(x_t, t).

    This is Tweedie's formula for the score grad log p_t + g grad J (Dhariwal and Nichol 2021, algorithm 2). Any solver
    can use it. Diffuser adds g Sigma grad J to the posterior mean, which is equal to first order.
    """

    def planner_x0(self, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        """Estimate the guided D of x (B, H, d + m), clamped to the data's range: like x."""
        clean = self.guided(x, level, condition, 0.0)
        sigma, (low, high) = float(self.schedule.sigmas[level]), self.config.guidance_interval
        if not self.config.guidance or not low <= sigma <= high:
            return clean
        with torch.inference_mode(False), torch.enable_grad():
            noisy = x.clone().requires_grad_()
            levels = torch.full((len(x),), level, device=x.device)
            (gradient,) = torch.autograd.grad(self.others["return_model"](noisy, levels).sum(), noisy)
        scale = self.config.guidance * sigma**2 / float(self.schedule.alphas[level])
        return (clean + scale * gradient).clamp(self.low, self.high)


def build_return_model(data: TrainingData) -> ReturnModel:
    """Build an untrained return model with the planner's sizes."""
    sizes = {key: data.settings["planner"][key] for key in ("width", "multipliers", "embedding")}
    return ReturnModel(**data.dims, horizon=data.settings["horizon"], **sizes)


class Diffuser(Baseline):
    """Plans states and actions together. The candidate with the largest J is chosen."""

    name = "diffuser"
    label = "Diffuser"
    color = ("#64748b", "#9fb0c6")
    summary = "An unconditional diffusion model of trajectories, guided by the gradient of a predicted return."
    order = 21
    needs_rewards = True
    models = (
        Recipe(
            "trajectory_planner",
            Planner,
            lambda data: Planner(**planner_arguments(data, dropout=1.0)),
            {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3, "keep": "last"},
            sections=("planner",),
        ),
        Recipe(
            "return_model",
            ReturnModel,
            build_return_model,
            {"steps": 5000, "batch_size": 64, "learning_rate": 1e-3},
            sections=("planner",),
        ),
    )
    roles = {"planner": "trajectory_planner", "return_model": "return_model"}  # noqa: RUF012
    fixed = {"composition": "planner"}  # noqa: RUF012
    # guidance: g, with J in standard deviations of the data's returns; its gradient is wrong near pure noise
    # (sigma_t above 0.99)
    settings = sampler_section(steps=10, guidance=1.0, guidance_interval=[0.0, 0.99], temperature=0.5, candidates=8)
    sampler_class = GuidedSampler

    def fits_graph(self, sampler: Sampler) -> bool:
        """Return False: the guide is a gradient, which a graph cannot compute."""
        return False

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return J (B N,) of decoded states (B N, H, d) and actions (B N, H, m) without noise."""
        x = torch.cat([self.latents.normalize(states), self.actions.normalize(actions)], -1)
        return self.own_models["return_model"](x, torch.zeros(len(x), dtype=torch.long, device=x.device))
