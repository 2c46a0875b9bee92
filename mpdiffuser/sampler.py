"""The alternating sampler: two diffusion models in one reverse process.

At each noise level the models estimate the clean trajectory, D. One update then moves the trajectory to the next level:

    fused       D joins both models: states w(t) dynamics + (1 - w(t)) planner, w(t) = alpha-bar(t)^p, actions from the
                planner. The planner shapes the plan at high noise, the dynamics model makes it feasible at low noise.
    joint       states from the dynamics model at every level, actions from the planner: fused with w = 1
    release     the states take a posterior step with the dynamics model's D, then states and actions take one with the
                planner's D (the update of Balim, Li and Du 2025)
    planner     the planner alone
    sequential  the planner alone, then the dynamics model draws the states again, given the planned actions. The
    actions
                carry the noise of the level, as in its training (the order of D-MPC: Zhou et al. 2024)

Solvers move x from level t to level n by x_n = x_coef x_t + x0_coef D + noise_std noise. For dpmpp_2m, D is
extrapolated from the last two estimates (Lu et al. 2022, alg. 2). Model outputs become D first, so that any prediction
type fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mpdiffuser.engines import ENGINES
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hold
from mpdiffuser.schedule import GRIDS, SOLVERS, Move, NoiseSchedule, moves

Field = Callable[[torch.Tensor], torch.Tensor]  # of trajectories (B, H, d + m), like them
COMPOSITIONS = ("fused", "release", "planner", "sequential", "joint")
TEMPERATURE, BUDGET_TEMPERATURE = 0.5, 1.0  # with no temperature given; more noise finds cheaper plans


@dataclass(frozen=True)
class SamplerConfig:
    """How a controller draws plans. Training does not depend on these settings.

    Args:
        composition: how the two models work together (see the module).
        steps: noise levels visited.
        grid: spacing of the levels, "logsnr", "uniform", "quadratic" or "karras".
        solver: "ddim", "ddpm" or "dpmpp_2m".
        eta: share of ddpm's noise that ddim draws, 0 to 1.
        guidance: classifier-free guidance scale; 0 (no target) and 1 cost one network pass, other values cost two.
        guidance_interval: [low, high]; the scale applies where the noise's deviation sigma_t lies within, elsewhere 1.
        temperature: scale of all noise that is drawn, the initial one too; None: 0.5, or 1 under a budget.
        dynamics_power: p in w(t) = alpha-bar(t)^p; 0 gives the states to the dynamics model at every level.
        candidates: N plans drawn for each observation.
        rank_temperature: 0 follows the candidate of the best score, large values the one that most agree on (`choose`).
        target: the return_to_go to ask for: this expectile, 0 to 1, of the data's returns from the present state.
        target_spread: the candidates' targets lie evenly between target - target_spread and target + target_spread.
        objective_scale: weight of the gradient of the controller's objective while plans are drawn; 0: the objective
            only ranks. J = objective_scale times the sum of its rewards.
        warm_start: levels to run again from the shifted last plan; 0 starts every plan from noise.
        engine: what computes the networks: "auto", "torch", "compile", "onnx", "openvino" or "openvino_bf16"
            (`mpdiffuser.engines`).
        deadline_ms: a controller visits as many levels, up to `steps`, as it can plan with in this time; 0 = `steps`.
        chunk: actions to execute of each plan before the next one is drawn.
        safe_action: (m,) in [-1, 1], taken where no plan can be drawn; empty: zeros.

    Raises:
        InputError: for a value that is not allowed.
    """

    composition: str = "fused"
    steps: int = 4
    grid: str = "logsnr"
    solver: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    temperature: float | None = None
    dynamics_power: float = 0.5
    candidates: int = 4
    rank_temperature: float = 100.0
    target: float = 0.9
    target_spread: float = 0.0
    objective_scale: float = 0.0
    warm_start: int = 0
    engine: str = "auto"
    deadline_ms: float = 0.0
    chunk: int = 1
    safe_action: Sequence[float] = ()

    def __post_init__(self) -> None:
        def require(fits: bool, name: str, allowed: str) -> None:
            if not fits:
                raise InputError(f"sampler.{name}: must {allowed}, found {getattr(self, name)!r}")

        names = {"composition": COMPOSITIONS, "solver": SOLVERS, "engine": ENGINES, "grid": GRIDS}
        for name, allowed in names.items():
            require(getattr(self, name) in allowed, name, f"be one of {', '.join(allowed)}")
        least = dict.fromkeys(("steps", "candidates", "chunk"), 1) | dict.fromkeys(
            ("warm_start", "rank_temperature", "dynamics_power", "objective_scale", "deadline_ms"), 0
        )
        for name, value in least.items():
            require(getattr(self, name) >= value, name, f"be at least {value}")
        require(self.temperature is None or self.temperature >= 0, "temperature", "be at least 0")
        for name in ("target", "target_spread", "eta"):
            require(0 <= getattr(self, name) <= 1, name, "lie in 0..1")
        require(
            self.composition != "release" or self.solver == "ddpm",
            "solver",
            "be ddpm with the release composition, which moves by posterior means",
        )
        require(self.eta == 0 or self.solver == "ddim", "eta", f"be 0 with the solver {self.solver}")
        require(self.warm_start <= self.steps, "warm_start", f"be at most sampler.steps = {self.steps}")
        interval = list(self.guidance_interval)
        fits = len(interval) == 2 and all(isinstance(end, int | float) for end in interval)
        require(
            fits and 0 <= interval[0] <= interval[1] <= 1, "guidance_interval", "be [low, high], 0 <= low <= high <= 1"
        )
        fits = all(isinstance(each, int | float) and abs(each) <= 1 for each in self.safe_action)
        require(fits, "safe_action", "be numbers in -1..1")


class Sampler:
    """Draws normalised trajectories from two models.

    Args:
        planner, dynamics, schedule: the models; dynamics may be None for the planner alone.
        low, high: range of clean trajectories for each dimension, (d + m,), normalised.
        config: how, with a temperature.
        others: further models that a method's sampler draws with, by name.

    Raises:
        InputError: if the composition needs a dynamics model and there is none.
    """

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics | None,
        schedule: NoiseSchedule,
        low: torch.Tensor,
        high: torch.Tensor,
        config: SamplerConfig,
        **others: torch.nn.Module,
    ) -> None:
        assert config.temperature is not None
        self.planner, self.dynamics, self.schedule, self.config = planner, dynamics, schedule, config
        self.low, self.high, self.others = low, high, others
        self.temperature = config.temperature
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
        objective_gradient: Field | None = None,
    ) -> torch.Tensor:
        """Draw a trajectory for each present latent.

        Args:
            present: z_0, (B, d), normalised.
            condition: (B, c), normalised.
            noise: gives standard normal noise (B, H, d + m) each time it is called.
            start: a clean trajectory (B, H, d + m) to refine over the last `warm_start` levels; None: pure noise.
            goal, committed: the last latent (B, d) and the first actions (B, K, m), where they are fixed.
            objective_gradient: of J at clean x (B, H, d + m), like x; trajectories then also have the weight exp(J).

        Returns:
            (B, H, d + m), normalised, within the data's range, with all fixed parts in place.
        """
        todo = self.moves if start is None else self.moves[len(self.moves) - self.config.warm_start :]
        fix = partial(hold, present=present, goal=goal, committed=committed)
        first = self.temperature * noise()
        x = first if start is None else self._noised(start, todo[0].level, first)
        estimate = partial(self._estimate, condition=condition, objective_gradient=objective_gradient)
        x = self._descend(x, todo, estimate, noise, fix)
        if self.config.composition == "sequential":
            x = self.resample_states(x, todo, noise, fix)
        return fix(self.complete(x))

    def resample_states(
        self, x: torch.Tensor, todo: Sequence[Move], noise: Callable[[], torch.Tensor], fix: Field
    ) -> torch.Tensor:
        """x (B, H, d + m) with its states drawn again by the dynamics model, given its actions."""
        assert self.dynamics is not None
        actions = x[..., self.dynamics.config["latent_dim"] :]
        estimate = lambda x, level: torch.cat([self.dynamics_x0(x, level), actions], -1)  # noqa: E731
        x = self._noised(x, todo[0].level, self.temperature * noise())
        return self._descend(x, todo, estimate, noise, fix)

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, H, d + m) with the parts that the models do not draw; here they draw everything."""
        return x

    def _descend(
        self,
        x: torch.Tensor,
        todo: Sequence[Move],
        estimate: Callable[[torch.Tensor, int], torch.Tensor],
        noise: Callable[[], torch.Tensor],
        fix: Field,
    ) -> torch.Tensor:
        """Noisy to clean x (B, H, d + m), with D = estimate(x, level) at each level; `fix` restores the fixed parts."""
        x, last = fix(x), None
        for move in todo:
            if self.config.composition == "release":
                real = self.dynamics_x0(x, move.level)
                states = move.x_coef * x[..., : real.shape[-1]] + move.x0_coef * real
                x = fix(torch.cat([states, x[..., real.shape[-1] :]], -1))
            clean = estimate(x, move.level)
            extrapolated = clean if last is None else clean + move.extrapolation * (clean - last)
            x, last = move.x_coef * x + move.x0_coef * extrapolated, clean
            if move.noise_std:
                x = x + self.temperature * move.noise_std * noise()
            x = fix(x)
        return x

    def _estimate(
        self, x: torch.Tensor, level: int, condition: torch.Tensor, objective_gradient: Field | None
    ) -> torch.Tensor:
        """D of noisy x (B, H, d + m) at one level.

        With the further weight exp(J), D moves by Cov[x_0 | x_t] grad J(D), to first order in J. The covariance is
        approximated by sigma_t^2, which is exact for independent entries of variance 1.
        """
        clean = self.planner_x0(x, level, condition)
        if self.config.composition in ("fused", "joint"):
            power = self.config.dynamics_power if self.config.composition == "fused" else 0.0
            w = float(self.schedule.alpha_bar[level]) ** power
            real = self.dynamics_x0(x, level)
            clean[..., : real.shape[-1]] = w * real + (1 - w) * clean[..., : real.shape[-1]]
        if objective_gradient is not None:
            moved = clean + float(self.schedule.sigmas[level]) ** 2 * objective_gradient(clean)
            clean = moved.clamp(self.low, self.high)
        return clean

    def _noised(self, clean: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
        a = float(self.schedule.alpha_bar[level])
        return a**0.5 * clean + (1 - a) ** 0.5 * noise

    def planner_x0(self, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
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

    def dynamics_x0(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """The dynamics model's D of the states (B, H, d), clamped to the data's range."""
        assert self.dynamics is not None
        d = self.dynamics.config["latent_dim"]
        levels = x.new_full((len(x),), level, dtype=torch.long)
        clean = self.schedule.to_clean(self.dynamics.config["prediction"], self.dynamics(x, levels), x[..., :d], levels)
        return clean.clamp(self.low[:d], self.high[:d])
