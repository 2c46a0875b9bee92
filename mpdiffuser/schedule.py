"""The noise schedule, and the solvers' updates between noise levels.

Forward process (Ho et al. 2020): x_t = alpha_t x_0 + sigma_t epsilon with alpha_t^2 = alpha-bar_t = 1 - sigma_t^2.
Level 0 is the trained level with the least noise, level T - 1 the one with the most. Clean data have level -1.
A `Move` has the coefficients of the update from one visited level to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mpdiffuser.errors import InputError

PREDICTIONS = ("epsilon", "sample", "v_prediction")
GRIDS = ("uniform", "logsnr", "quadratic", "karras")
SOLVERS = ("dpmpp_2m", "ddim", "ddpm")
RHO = 7  # Karras et al. 2022, equation 5


class NoiseSchedule(SchedulerMixin, ConfigMixin):
    """Cosine (Nichol and Dhariwal 2021, eq. 17) or linear betas over T levels. It has no state; models can share it.

    Args:
        num_levels: T.
        betas: "cosine" or "linear".

    Raises:
        InputError: for an unknown kind of betas or T < 1.
    """

    config_name = "schedule_config.json"

    @register_to_config
    def __init__(self, num_levels: int = 100, betas: str = "cosine") -> None:
        if num_levels < 1:
            raise InputError(f"schedule.num_levels: must be at least 1, found {num_levels}")
        if betas == "cosine":
            time = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
            alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        elif betas == "linear":
            beta = torch.linspace(1e-4, 0.02, num_levels, dtype=torch.float64) * (1000 / num_levels)
            beta = beta.clamp(max=0.999)
        else:
            raise InputError(f"schedule.betas: must be 'cosine' or 'linear', found {betas!r}")
        self.alpha_bar = torch.cumprod(1 - beta, 0)
        self.alphas = self.alpha_bar.sqrt().float()
        self.sigmas = (1 - self.alpha_bar).sqrt().float()

    def coefficients(self, levels: torch.Tensor, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha_t and sigma_t of levels (B,), each (B, 1, ..., 1) with `dims` dimensions."""
        shape = (-1, *[1] * (dims - 1))
        alphas, sigmas = self.alphas.to(levels.device), self.sigmas.to(levels.device)
        return alphas[levels].view(shape), sigmas[levels].view(shape)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Return x_t, (B, ...), from x_0 and epsilon, both (B, ...), at levels (B,)."""
        alpha, sigma = self.coefficients(levels, clean.dim())
        return alpha * clean + sigma * noise

    def training_target(
        self, prediction: str, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        """Return the training target (B, ...) of a prediction type: epsilon, x_0 ("sample"), or v.

        v = alpha epsilon - sigma x_0 (Salimans and Ho 2022). Arguments as `add_noise`.
        """
        if prediction == "epsilon":
            return noise
        if prediction == "sample":
            return clean
        alpha, sigma = self.coefficients(levels, clean.dim())
        return alpha * noise - sigma * clean

    def to_clean(
        self, prediction: str, output: torch.Tensor, noisy: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        """Convert a network's output (B, ...) at noisy x_t (B, ...) and levels (B,) to an estimate of x_0, (B, ...).

        This is the inverse of `training_target`.
        """
        if prediction == "sample":
            return output
        alpha, sigma = self.coefficients(levels, noisy.dim())
        if prediction == "epsilon":
            return (noisy - sigma * output) / alpha
        return alpha * noisy - sigma * output

    def output_scale(self, prediction: str, levels: torch.Tensor, dims: int) -> torch.Tensor:
        """Return the error of an output that an error of 1 in its estimate of x_0 has, at levels (B,).

        Returns:
            (B, 1, ..., 1) with `dims` dimensions: alpha / sigma for "epsilon", 1 for "sample", 1 / sigma for v.
        """
        alpha, sigma = self.coefficients(levels, dims)
        return {"epsilon": alpha, "sample": sigma, "v_prediction": torch.ones_like(sigma)}[prediction] / sigma

    def grid(self, steps: int, kind: str = "logsnr") -> list[int]:
        """Return the visited noise levels, decreasing from T - 1, without the final clean level.

        Args:
            steps: number of levels, 1..T.
            kind: "uniform" in t, "logsnr" (uniform in log(alpha / sigma)), "quadratic" (denser near clean data), or
                "karras" (uniform in (sigma / alpha)^(1 / 7)).

        Raises:
            InputError: for steps outside 1..T or an unknown kind.
        """
        total = self.config["num_levels"]
        if not 1 <= steps <= total:
            raise InputError(f"sampler.steps: must lie in 1..{total} (the schedule's levels), found {steps}")
        if kind not in GRIDS:
            raise InputError(f"sampler.grid: must be one of {', '.join(GRIDS)}, found {kind!r}")
        if steps == 1:
            return [total - 1]
        fraction = torch.linspace(0, 1, steps, dtype=torch.float64)
        if kind in ("uniform", "quadratic"):
            wanted = (1 - fraction) ** (1 if kind == "uniform" else 2) * (total - 1)
        else:
            logsnr = torch.logit(self.alpha_bar) / 2
            place = logsnr if kind == "logsnr" else torch.exp(-logsnr / RHO)
            points = place[-1] + fraction * (place[0] - place[-1])
            wanted = (place[None] - points[:, None]).abs().argmin(1).double()
        return _distinct(wanted.round().long().tolist(), total)


def _distinct(levels: Sequence[int], total: int) -> list[int]:
    """Return strictly decreasing levels in 0..total-1, close to the given levels, with two passes over them."""
    result = list(levels)
    for i in range(1, len(result)):
        result[i] = min(result[i], result[i - 1] - 1)
    for i in range(len(result)):  # the first pass may end below 0
        result[i] = max(result[i], len(result) - 1 - i)
    assert result[0] < total
    return result


@dataclass(frozen=True)
class Move:
    """The update from one level to the next: x_n = x_coef x_t + x0_coef D + noise_std noise.

    D = x0 + extrapolation (x0 - previous x0), with the estimate x0 at `level`.
    """

    level: int
    x_coef: float
    x0_coef: float
    noise_std: float
    extrapolation: float


def moves(schedule: NoiseSchedule, levels: list[int], solver: str, eta: float = 0.0) -> list[Move]:
    """Return the update from each level to the next. The last update ends at clean data.

    Args:
        schedule: the noise schedule.
        levels: the visited levels, decreasing.
        solver: "ddim", "ddpm" or "dpmpp_2m".
        eta: noise of ddim (Song et al. 2021, equation 16): 0 adds no noise, 1 is ddpm.
    """
    eta = {"ddpm": 1.0, "ddim": eta, "dpmpp_2m": 0.0}[solver]
    alpha_bar = [*schedule.alpha_bar[levels].tolist(), 1.0]
    result: list[Move] = []
    last_step = None
    for level, a, b in zip(levels, alpha_bar[:-1], alpha_bar[1:]):
        noise_std = eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
        x_coef = max(1 - b - noise_std**2, 0.0) ** 0.5 / (1 - a) ** 0.5
        x0_coef = b**0.5 - x_coef * a**0.5
        step = _log_snr(b) - _log_snr(a) if b < 1 else 0.0  # the last update, to clean data, is of first order
        extrapolation = step / (2 * last_step) if solver == "dpmpp_2m" and last_step else 0.0
        result.append(Move(level, x_coef, x0_coef, noise_std, extrapolation))
        last_step = step
    return result


def _log_snr(alpha_bar: float) -> float:
    """Return lambda = log(alpha / sigma)."""
    return float(torch.logit(torch.tensor(alpha_bar, dtype=torch.float64))) / 2
