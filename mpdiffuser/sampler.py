"""The alternating sampler: two diffusion models in one reverse process.

At each noise level a model says what the clean trajectory is, D, and one update moves the trajectory to the next level:

    fused       one D from two: states w(t) dynamics + (1 - w(t)) planner, w(t) = alpha-bar(t)^p, actions from the
                planner; the planner shapes the plan while noise is high, the dynamics model makes it feasible while low
    joint       states from the dynamics model at every level, actions from the planner: fused with w = 1
    release     the states take a posterior step with the dynamics' D, then states and actions take one with the
                planner's (the update of Balim, Li and Du 2025)
    planner     the planner alone
    sequential  the planner alone; then the dynamics model draws the states anew while the planned actions, noised to
                the same level as in its training, are given (the order of D-MPC: Zhou et al. 2024)

Solvers move x from level t to level n by x_n = k x_t + m D + s noise, for dpmpp_2m with D extrapolated from the last
two (Lu et al. 2022, alg. 2). Model outputs become D first, so any prediction type fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mpdiffuser.engines import ENGINES
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hold
from mpdiffuser.schedule import SOLVERS, Move, NoiseSchedule, moves

Field = Callable[[torch.Tensor], torch.Tensor]  # of trajectories (B, H, d + m), like them
COMPOSITIONS = ("fused", "release", "planner", "sequential", "joint")


@dataclass(frozen=True)
class SamplerConfig:
    """How to draw plans; arguments of the call, never of the training.

    Args:
        composition: how the two models work together (see the module).
        steps: noise levels visited.
        grid: their spacing, "logsnr", "uniform", "quadratic" or "karras".
        solver: "dpmpp_2m", "ddim" or "ddpm".
        eta: share of ddpm's noise that ddim draws, 0 to 1.
        guidance: classifier-free guidance scale; 0 (no target) and 1 cost one network pass, anything else two.
        guidance_interval: [low, high]; guided where the noise's deviation sigma_t lies within, elsewhere as with 1.
        temperature: scale of all noise that is drawn, the initial one too.
        dynamics_power: p in w(t) = alpha-bar(t)^p; 0 gives the states to the dynamics model at every level.
        candidates: N plans drawn for each observation.
        rank_temperature: which candidate is followed: towards 0 the best score, large what most agree on (`choose`).
        target: wanted return_to_go: this expectile, 0 to 1, of what the data got from the present state on.
        target_spread: the candidates' targets lie evenly between target - target_spread and target + target_spread.
        pull: how strongly the gradient of an objective handed to the controller pulls at the plans; 0 leaves it to the
            ranking. J = pull times the sum of its rewards.
        warm_start: levels to run again from the shifted last plan; 0 starts every plan from noise.
        engine: who computes the networks: "auto", "torch", "compile", "onnx", "openvino" or "openvino_bf16"
            (`mpdiffuser.engines`).
        deadline_ms: a controller visits as many levels, up to `steps`, as it can plan with in this time; 0 = `steps`.

    Raises:
        InputError: for a value that cannot be.
    """

    composition: str = "fused"
    steps: int = 4
    grid: str = "logsnr"
    solver: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    temperature: float = 0.5
    dynamics_power: float = 0.5
    candidates: int = 4
    rank_temperature: float = 100.0
    target: float = 0.9
    target_spread: float = 0.0
    pull: float = 0.0
    warm_start: int = 0
    engine: str = "auto"
    deadline_ms: float = 0.0

    def __post_init__(self) -> None:
        def demand(fits: bool, name: str, allowed: str) -> None:
            if not fits:
                raise InputError(f"sampler.{name}: must {allowed}, found {getattr(self, name)!r}")

        for name, names in (("composition", COMPOSITIONS), ("solver", SOLVERS), ("engine", ENGINES)):
            demand(getattr(self, name) in names, name, f"be one of {', '.join(names)}")
        least = {"steps": 1, "candidates": 1} | dict.fromkeys(
            ("warm_start", "temperature", "rank_temperature", "dynamics_power", "pull", "deadline_ms"), 0
        )
        for name, value in least.items():
            demand(getattr(self, name) >= value, name, f"be at least {value}")
        for name in ("target", "target_spread", "eta"):
            demand(0 <= getattr(self, name) <= 1, name, "lie in 0..1")
        demand(
            self.composition != "release" or self.solver == "ddpm",
            "solver",
            "be ddpm with the release composition, which moves by posterior means",
        )
        demand(self.eta == 0 or self.solver == "ddim", "eta", f"be 0 with the solver {self.solver}")
        demand(self.warm_start <= self.steps, "warm_start", f"be at most sampler.steps = {self.steps}")
        interval = list(self.guidance_interval)
        fits = len(interval) == 2 and all(isinstance(end, int | float) for end in interval)
        demand(
            fits and 0 <= interval[0] <= interval[1] <= 1, "guidance_interval", "be [low, high], 0 <= low <= high <= 1"
        )


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
        self.moves = moves(schedule, schedule.grid(config.steps, config.grid), config.solver, config.eta)
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
        goal: torch.Tensor | None = None,
        committed: torch.Tensor | None = None,
        slope: Field | None = None,
    ) -> torch.Tensor:
        """Draw a trajectory for each present latent.

        Args:
            present: z_0, (B, d), normalised.
            condition: (B, c), normalised.
            noise: gives standard normal noise (B, H, d + m) each time it is called.
            start: a clean trajectory (B, H, d + m) to refine over the last `warm_start` levels; None = from pure noise.
            goal, committed: the last latent (B, d) and the first actions (B, K, m), where they are known already.
            slope: of J at clean x (B, H, d + m), like x, where trajectories are to be drawn with the weight exp(J) too.

        Returns:
            (B, H, d + m), normalised, within the data's range, what is known in its place.
        """
        tau = self.config.temperature
        todo = self.moves if start is None else self.moves[len(self.moves) - self.config.warm_start :]
        fix = partial(hold, present=present, goal=goal, committed=committed)
        x = tau * noise() if start is None else self._noised(start, todo[0].level, tau * noise())
        x = self._descend(x, todo, partial(self._estimate, condition=condition, slope=slope), noise, fix)
        if self.config.composition == "sequential":
            x = self.respond(x, todo, noise, fix)
        return fix(self.complete(x))

    def respond(
        self, x: torch.Tensor, todo: Sequence[Move], noise: Callable[[], torch.Tensor], fix: Field
    ) -> torch.Tensor:
        """x (B, H, d + m) with its states drawn anew by the dynamics model, given its actions."""
        assert self.dynamics is not None
        actions = x[..., self.dynamics.config["latent_dim"] :]
        given = lambda x, level: torch.cat([self.realised(x, level), actions], -1)  # noqa: E731
        x = self._noised(x, todo[0].level, self.config.temperature * noise())
        return self._descend(x, todo, given, noise, fix)

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        """Drawn x (B, H, d + m) with what its models do not draw; here they draw everything."""
        return x

    def _descend(
        self,
        x: torch.Tensor,
        todo: Sequence[Move],
        estimate: Callable[[torch.Tensor, int], torch.Tensor],
        noise: Callable[[], torch.Tensor],
        fix: Field,
    ) -> torch.Tensor:
        """From noisy to clean x (B, H, d + m), with D = estimate(x, level) at each level and `fix` before each look."""
        x, last = fix(x), None
        for move in todo:
            if self.config.composition == "release":
                real = self.realised(x, move.level)
                states = move.carry * x[..., : real.shape[-1]] + move.pull * real
                x = fix(torch.cat([states, x[..., real.shape[-1] :]], -1))
            clean = estimate(x, move.level)
            ahead = clean if last is None else clean + move.extrapolation * (clean - last)
            x, last = move.carry * x + move.pull * ahead, clean
            if move.spread:
                x = x + self.config.temperature * move.spread * noise()
            x = fix(x)
        return x

    def _estimate(self, x: torch.Tensor, level: int, condition: torch.Tensor, slope: Field | None) -> torch.Tensor:
        """D of noisy x (B, H, d + m) at one level.

        With exp(J) as a further weight D moves by Cov[x_0 | x_t] grad J(D), to first order in J; the covariance is
        taken to be sigma_t^2, which it is for independent entries of variance 1.
        """
        clean = self.planned(x, level, condition)
        if self.config.composition in ("fused", "joint"):
            power = self.config.dynamics_power if self.config.composition == "fused" else 0.0
            w = float(self.schedule.alpha_bar[level]) ** power
            real = self.realised(x, level)
            clean[..., : real.shape[-1]] = w * real + (1 - w) * clean[..., : real.shape[-1]]
        if slope is not None:
            clean = (clean + float(self.schedule.sigmas[level]) ** 2 * slope(clean)).clamp(self.low, self.high)
        return clean

    def _noised(self, clean: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
        a = float(self.schedule.alpha_bar[level])
        return a**0.5 * clean + (1 - a) ** 0.5 * noise

    def planned(self, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        """The planner's D of x (B, H, d + m), guided: D = u + g (c - u), clamped to the data's range."""
        low, high = self.config.guidance_interval
        inside = low <= float(self.schedule.sigmas[level]) <= high
        return self.guided(x, level, condition, self.config.guidance if inside else 1.0)

    def guided(self, x: torch.Tensor, level: int, condition: torch.Tensor, g: float) -> torch.Tensor:
        """The planner's D at guidance scale g."""
        prediction = self.planner.config["prediction"]
        levels, keep = x.new_full((len(x),), level, dtype=torch.long), x.new_ones(len(x))
        if g in (0, 1):
            clean = self.schedule.to_clean(prediction, self.planner(x, levels, condition, g * keep), x, levels)
        else:
            twice = lambda tensor: torch.cat([tensor, tensor])  # noqa: E731
            output = self.planner(twice(x), twice(levels), twice(condition), torch.cat([keep, 0 * keep]))
            with_target, without = self.schedule.to_clean(prediction, output, twice(x), twice(levels)).chunk(2)
            clean = without + g * (with_target - without)
        return clean.clamp(self.low, self.high)

    def realised(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """The dynamics model's D of the states (B, H, d), clamped to the data's range."""
        assert self.dynamics is not None
        d = self.dynamics.config["latent_dim"]
        levels = x.new_full((len(x),), level, dtype=torch.long)
        clean = self.schedule.to_clean(self.dynamics.config["prediction"], self.dynamics(x, levels), x[..., :d], levels)
        return clean.clamp(self.low[:d], self.high[:d])
