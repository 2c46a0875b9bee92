"""Diffuser (Janner et al. 2022): trajectories from an unconditional model, guided by the gradient of a return."""

import torch

from mpdiffuser.models.return_model import ReturnModel
from mpdiffuser.rivals.base import Rival
from mpdiffuser.sampler import Sampler


class GuidedSampler(Sampler):
    """Draws from p(x) exp(g J(x)): at each level D = D_p + g sigma^2 / alpha grad J(x_t, t).

    This is Tweedie's formula for the tilted density's score, grad log p_t + g grad J (Dhariwal and Nichol 2021,
    algorithm 2), which any solver can use. Diffuser adds g Sigma grad J to the posterior mean: the same to first order.
    """

    return_model: ReturnModel

    def planned(self, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        clean = self.guided(x, level, condition, 0.0)
        sigma, (low, high) = float(self.schedule.sigmas[level]), self.config.guidance_interval
        if not self.config.guidance or not low <= sigma <= high:
            return clean
        with torch.inference_mode(False), torch.enable_grad():
            noisy = x.clone().requires_grad_()
            levels = torch.full((len(x),), level, device=x.device)
            (gradient,) = torch.autograd.grad(self.return_model(noisy, levels).sum(), noisy)
        scale = self.config.guidance * sigma**2 / float(self.schedule.alphas[level])
        return (clean + scale * gradient).clamp(self.low, self.high)


class Diffuser(Rival):
    """Plans states and actions together; of the candidates the one of the largest J wins."""

    roles = {"planner": "trajectory_planner", "return_model": "return_model"}  # noqa: RUF012
    fixed = {"composition": "planner"}  # noqa: RUF012
    drawing = GuidedSampler

    def scores(
        self, states: torch.Tensor, actions: torch.Tensor, cost_to_go: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = torch.cat([self.latents.normalize(states), self.actions.normalize(actions)], -1)
        return self.own["return_model"](x, torch.zeros(len(x), dtype=torch.long, device=x.device))
