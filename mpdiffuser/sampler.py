"""The alternating sampler: two diffusion models in one reverse process.

At each noise level both models say what the clean trajectory is, and one update moves the trajectory to the next level:

    fused     one x0 from two: states w(t) dynamics + (1 - w(t)) planner, w(t) = alpha-bar(t)^p, actions from the
              planner; the planner shapes the plan while noise is high, the dynamics model makes it feasible while low
    release   the states take a posterior step with the dynamics' x0, then states and actions take one with the
              planner's (the update of Balim, Li and Du 2025)
    planner   the planner alone

Solvers move x from level t to level n by x_n = k x_t + m D + s noise, with D the x0 estimate, for dpmpp_2m extrapolated
from the last two (Lu et al. 2022, alg. 2). Model outputs become x0 estimates first, so any prediction type fits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hold_present
from mpdiffuser.schedule import NoiseSchedule

COMPOSITIONS = ("fused", "release", "planner")
SOLVERS = ("dpmpp_2m", "ddim", "ddpm")


@dataclass(frozen=True)
class SamplerConfig:
    """How to draw plans; arguments of the call, never of the training.

    Args:
        composition: how the two models work together (see the module).
        steps: noise levels visited.
        grid: their spacing, "logsnr", "uniform" or "quadratic".
        solver: "dpmpp_2m", "ddim" or "ddpm".
        guidance: classifier-free guidance scale; 1 costs one network pass, anything else two.
        temperature: scale of all noise that is drawn, the initial one too.
        dynamics_power: p in w(t) = alpha-bar(t)^p; 0 gives the states to the dynamics model at every level.
        candidates: N plans drawn for each observation.
        target: wanted return_to_go: what this share of the data's outcomes from the present state stays below, 0 to 1.
        warm_start: levels to run again from the shifted last plan; 0 starts every plan from noise.

    Raises:
        InputError: for a value that cannot be.
    """

    composition: str = "fused"
    steps: int = 8
    grid: str = "logsnr"
    solver: str = "dpmpp_2m"
    guidance: float = 1.0
    temperature: float = 0.2
    dynamics_power: float = 0.5
    candidates: int = 2
    target: float = 0.9
    warm_start: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("composition", COMPOSITIONS), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"sampler.{name}: must be one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        if self.composition == "release" and self.solver != "ddpm":
            raise InputError(
                "sampler.solver: the release composition moves by posterior means, so it must be ddpm; "
                f"found {self.solver!r}"
            )
        for name, least in (("steps", 1), ("candidates", 1), ("warm_start", 0), ("temperature", 0)):
            if getattr(self, name) < least:
                raise InputError(f"sampler.{name}: must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.target <= 1:
            raise InputError(f"sampler.target: must lie in 0..1, found {self.target}")
        if self.warm_start > self.steps:
            raise InputError(
                f"sampler.warm_start: must be at most sampler.steps = {self.steps}, found {self.warm_start}"
            )


@dataclass(frozen=True)
class Move:
    """x_n = carry x_t + pull D + spread noise; D = x0 + extrapolation (x0 - previous x0)."""

    level: int
    carry: float
    pull: float
    spread: float
    extrapolation: float


def moves(schedule: NoiseSchedule, levels: list[int], solver: str) -> list[Move]:
    """The update's coefficients from each level to the next, the last landing on clean data."""
    alpha_bar = [*schedule.alpha_bar[levels].tolist(), 1.0]
    result: list[Move] = []
    last_step = None
    for level, a, b in zip(levels, alpha_bar[:-1], alpha_bar[1:]):
        spread = ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5 if solver == "ddpm" else 0.0
        carry = max(1 - b - spread**2, 0.0) ** 0.5 / (1 - a) ** 0.5
        pull = b**0.5 - carry * a**0.5
        step = _log_snr(b) - _log_snr(a) if b < 1 else 0.0  # onto clean data the move is first order
        extrapolation = step / (2 * last_step) if solver == "dpmpp_2m" and last_step else 0.0
        result.append(Move(level, carry, pull, spread, extrapolation))
        last_step = step
    return result


def _log_snr(alpha_bar: float) -> float:
    """lambda = log(alpha / sigma)."""
    return float(torch.logit(torch.tensor(alpha_bar, dtype=torch.float64))) / 2


class Sampler:
    """Draws normalised trajectories from two models.

    Args:
        planner, dynamics, schedule: the models; dynamics may be None for the planner alone.
        low, high: range of clean trajectories for each dimension, (d + m,), normalised.
        config: how.
    """

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics | None,
        schedule: NoiseSchedule,
        low: torch.Tensor,
        high: torch.Tensor,
        config: SamplerConfig,
    ) -> None:
        self.planner, self.dynamics, self.schedule, self.config = planner, dynamics, schedule, config
        self.low, self.high = low, high
        self.moves = moves(schedule, schedule.grid(config.steps, config.grid), config.solver)
        if dynamics is None and config.composition != "planner":
            raise InputError(
                f"sampler.composition: {config.composition!r} needs a dynamics model; this pipeline has none"
            )

    @torch.inference_mode()
    def __call__(
        self,
        present: torch.Tensor,
        condition: torch.Tensor,
        noise: Callable[[], torch.Tensor],
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw a trajectory for each present latent.

        Args:
            present: z_0, (B, d), normalised.
            condition: (B, c), normalised.
            noise: gives standard normal noise (B, H, d + m) each time it is called.
            start: a clean trajectory (B, H, d + m) to refine over the last `warm_start` levels; None = from pure noise.

        Returns:
            (B, H, d + m), normalised, within the data's range, z_0 in its place.
        """
        config = self.config
        todo = self.moves if start is None else self.moves[len(self.moves) - config.warm_start :]
        x = config.temperature * noise()
        if start is not None:
            a = float(self.schedule.alpha_bar[todo[0].level])
            x = a**0.5 * start + (1 - a) ** 0.5 * x
        x = hold_present(x, present)
        advance = self._release if config.composition == "release" else self._advance
        last: torch.Tensor | None = None
        for move in todo:
            levels = torch.full((len(x),), move.level, device=x.device)
            x, last = advance(x, levels, present, condition, move, last)
            if move.spread:
                x = x + config.temperature * move.spread * noise()
            x = hold_present(x, present)
        return x

    def _advance(
        self,
        x: torch.Tensor,
        levels: torch.Tensor,
        present: torch.Tensor,
        condition: torch.Tensor,
        move: Move,
        last: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One level of the fused composition, or of the planner alone."""
        d = present.shape[-1]
        clean = self.planned(x, levels, condition)
        if self.config.composition == "fused":
            w = float(self.schedule.alpha_bar[move.level]) ** self.config.dynamics_power
            clean[..., :d] = w * self.realised(x, levels) + (1 - w) * clean[..., :d]
        ahead = clean if last is None else clean + move.extrapolation * (clean - last)
        return move.carry * x + move.pull * ahead, clean

    def _release(
        self,
        x: torch.Tensor,
        levels: torch.Tensor,
        present: torch.Tensor,
        condition: torch.Tensor,
        move: Move,
        last: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One level of the release: two posterior-mean moves of the states, one of the actions."""
        d = present.shape[-1]
        moved = x.clone()
        moved[..., :d] = move.carry * x[..., :d] + move.pull * self.realised(x, levels)
        moved = hold_present(moved, present)
        return move.carry * moved + move.pull * self.planned(moved, levels, condition), None

    def planned(self, x: torch.Tensor, levels: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The planner's x0 of noisy x (B, H, d + m), guided: x0 = u + g (c - u), clamped to the data's range."""
        g = self.config.guidance
        prediction = self.planner.config["prediction"]
        keep = torch.ones(len(x), device=x.device, dtype=x.dtype)
        if g == 1:
            clean = self.schedule.to_clean(prediction, self.planner(x, levels, condition, keep), x, levels)
        else:
            twice = lambda tensor: torch.cat([tensor, tensor])  # noqa: E731
            output = self.planner(twice(x), twice(levels), twice(condition), torch.cat([keep, 0 * keep]))
            with_target, without = self.schedule.to_clean(prediction, output, twice(x), twice(levels)).chunk(2)
            clean = without + g * (with_target - without)
        return clean.clamp(self.low, self.high)

    def realised(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """The dynamics model's x0 of the states (B, H, d), clamped to the data's range."""
        assert self.dynamics is not None
        d = self.dynamics.config["latent_dim"]
        clean = self.schedule.to_clean(self.dynamics.config["prediction"], self.dynamics(x, levels), x[..., :d], levels)
        return clean.clamp(self.low[:d], self.high[:d])
