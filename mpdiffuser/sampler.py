"""The alternating sampler: two diffusion models in one reverse process.

At each noise level the models estimate the clean trajectory, D. One update then moves the trajectory to the next level:

    fused       D combines both models. States: w(t) dynamics + (1 - w(t)) planner with w(t) = alpha-bar(t)^p. Actions:
                from the planner. The planner decides the plan at high noise; the dynamics model makes it feasible at
                low noise.
    joint       fused with w = 1: states from the dynamics model at every level, actions from the planner
    heard       fused, and the actions hear the dynamics model: the planner's estimate of them plus
                E[u | z_t, u_t] - E[u | u_t] of the dynamics model (docs/theory.md, section 8). It must be trained with
                `dynamics.hears`.
    contrast    heard, and the planner's estimate of the states gets E[z | z_t, u_t] - E[z | z_t] in the same way
    release     The states take a posterior step with the dynamics model's D. Then states and actions take one with the
                planner's D (the update of Balim, Li and Du 2025).
    planner     the planner only
    sequential  The planner samples a plan. Then the dynamics model samples the states again, given the planned actions.
                The actions have the noise of the level, as in the training of the dynamics model (the order of D-MPC:
                Zhou et al. 2024).

A solver moves x from level t to level n by x_n = x_coef x_t + x0_coef D + noise_std noise. For dpmpp_2m, D is
extrapolated from the last two estimates (Lu et al. 2022, alg. 2). The sampler converts model outputs to D first, so it
supports every prediction type.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mpdiffuser.engines import ENGINES
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner, hide, hold
from mpdiffuser.record import Actions
from mpdiffuser.schedule import GRIDS, SOLVERS, Move, NoiseSchedule, moves

Field = Callable[[torch.Tensor], torch.Tensor]  # trajectories (B, H, d + m) -> like the trajectories
COMPOSITIONS = ("fused", "release", "planner", "sequential", "joint", "heard", "contrast")
HEARING = ("heard", "contrast")
DEFAULT_STEPS = 3  # of a pipeline for which the rule of `mpdiffuser.tuning` has not chosen a number


@dataclass(frozen=True)
class SamplerConfig:
    """Settings for sampling and executing plans. Only the training of a student depends on them.

    Args:
        composition: how the two models are combined (see the module).
        steps: number of noise levels; None: the number chosen at the end of training (`mpdiffuser.tuning`).
        grid: spacing of the levels, "logsnr", "uniform", "quadratic" or "karras".
        solver: "ddim", "ddpm" or "dpmpp_2m".
        eta: scale of ddim's noise relative to ddpm's, 0 to 1.
        guidance: classifier-free guidance scale; 0 (no target) and 1 need one network pass, other values need two.
        guidance_interval: [low, high]; the scale applies if sigma_t, the standard deviation of the noise, is inside.
            Outside of it the scale is 1.
        temperature: scale of all sampled noise, including the initial noise. The models are trained at 1.
        dynamics_power: p in w(t) = alpha-bar(t)^p; with 0 the dynamics model estimates the states at every level.
        candidates: N, the number of plans for each observation.
        rank_temperature: 0 executes the candidate with the best score. A large value executes the mean of all
            candidates (`candidate_weights`).
        target: the target return_to_go is this expectile, 0 to 1, of the data's returns from the present state.
        target_spread: the candidates' levels are evenly spaced from target - target_spread to target + target_spread.
        objective_scale: the sampler follows the gradient of J = objective_scale times the sum of the objective's
            rewards; with 0 the objective only ranks the candidates.
        warm_start: number of final levels that run from the shifted last plan; 0 starts every plan from noise.
        engine: computes the networks: "auto", "torch", "compile", "onnx", "openvino" or "openvino_bf16"
            (`mpdiffuser.engines`).
        deadline_ms: time for a plan in milliseconds; it limits the number of levels. 0: no limit, `steps` levels.
        chunk: number of actions of each plan that are executed before the next plan.
        delay: number of decisions between an observation and the arrival of its plan, which begins in the state that is
            predicted for its arrival; 0: the plan is there at once.
        safe_action: (m,) in the data's units, executed if planning fails and the last plan has ended; empty: zeros.

    Raises:
        InputError: for a value that is not allowed.
    """

    composition: str = "fused"
    steps: int | None = None
    grid: str = "logsnr"
    solver: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    temperature: float = 1.0
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
    delay: int = 0
    safe_action: Sequence[float] = ()

    def __post_init__(self) -> None:
        def require(fits: bool, name: str, allowed: str) -> None:
            if not fits:
                raise InputError(f"sampler.{name}: must {allowed}, found {getattr(self, name)!r}")

        names = {"composition": COMPOSITIONS, "solver": SOLVERS, "engine": ENGINES, "grid": GRIDS}
        for name, allowed in names.items():
            require(getattr(self, name) in allowed, name, f"be one of {', '.join(allowed)}")
        floats = ("temperature", "rank_temperature", "dynamics_power", "objective_scale", "deadline_ms")
        least = dict.fromkeys(("candidates", "chunk"), 1) | dict.fromkeys(("warm_start", "delay", *floats), 0)
        for name, value in least.items():
            require(getattr(self, name) >= value, name, f"be at least {value}")
        require(self.steps is None or self.steps >= 1, "steps", "be at least 1")
        for name in ("candidates", "chunk", "warm_start", "delay"):
            require(isinstance(getattr(self, name), int), name, "be a whole number")
        for name in ("target", "target_spread", "eta"):
            require(0 <= getattr(self, name) <= 1, name, "lie in 0..1")
        require(
            self.composition != "release" or self.solver == "ddpm",
            "solver",
            "be ddpm with the release composition, which moves by posterior means",
        )
        require(self.eta == 0 or self.solver == "ddim", "eta", f"be 0 with the solver {self.solver}")
        require(self.warm_start <= self.levels, "warm_start", f"be at most sampler.steps = {self.levels}")
        interval = list(self.guidance_interval)
        fits = len(interval) == 2 and all(isinstance(end, int | float) for end in interval)
        require(
            fits and 0 <= interval[0] <= interval[1] <= 1, "guidance_interval", "be [low, high], 0 <= low <= high <= 1"
        )
        fits = all(isinstance(each, int | float) and math.isfinite(each) for each in self.safe_action)
        require(fits, "safe_action", "be finite numbers")

    @property
    def levels(self) -> int:
        """The number of noise levels: `steps`, or `DEFAULT_STEPS`."""
        return self.steps or DEFAULT_STEPS

    def check_single(self, where: str) -> None:
        """Raise InputError, naming `where`, unless each decision has a new plan, drawn from pure noise."""
        self._check_equal(where, chunk=1, warm_start=0, delay=0, deadline_ms=0)

    def _check_equal(self, where: str, **needed: float) -> None:
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise InputError(f"sampler.{name}: must be {value} in {where}, found {getattr(self, name)}")

    def check_fit(self, horizon: int, actions: Actions | None, stride: int = 1) -> None:
        """Raise InputError unless the settings fit such plans and the safe action is within the bounds.

        Args:
            horizon: of the plans.
            actions: bounds of the actions; None: not known yet.
            stride: decisions between two rows of a plan. Above 1 only the first action of a plan is known.
        """
        if stride > 1:
            self._check_equal(f"plans of stride={stride}", chunk=1, warm_start=0, delay=0)
        if not self.chunk < horizon:
            raise InputError(f"sampler.chunk: must lie in 1..{horizon - 1} (below the horizon), found {self.chunk}")
        if not self.delay < horizon:
            raise InputError(f"sampler.delay: must lie in 0..{horizon - 1} (below the horizon), found {self.delay}")
        if actions is not None and self.safe_action:
            safe, low, high = np.array(self.safe_action), np.array(actions.low), np.array(actions.high)
            if safe.shape != low.shape or actions.beyond(safe[None]).any():
                raise InputError(
                    f"sampler.safe_action: must be {len(low)} numbers within {low.tolist()} and {high.tolist()}, "
                    f"found {list(self.safe_action)}"
                )


class Sampler:
    """Samples normalised trajectories with two diffusion models.

    Args:
        planner, dynamics: the models; dynamics may be None with composition "planner".
        schedule: the noise schedule of both models.
        low, high: range of each dimension of clean trajectories, (d + m,), normalised.
        config: the settings.
        others: further models of a baseline's sampler, by name.

    Raises:
        InputError: if the composition needs a dynamics model that is missing.
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
        self.planner, self.dynamics, self.schedule, self.config = planner, dynamics, schedule, config
        self.low, self.high, self.others = low, high, others
        self.temperature = config.temperature
        self.moves = moves(schedule, schedule.grid(config.levels, config.grid), config.solver, config.eta)
        if dynamics is None and config.composition != "planner":
            raise InputError(
                f"sampler.composition: {config.composition!r} needs a dynamics model; this pipeline has none"
            )
        if config.composition in HEARING and not (dynamics and dynamics.config.get("hears")):
            raise InputError(
                f"sampler.composition: {config.composition!r} needs a dynamics model that estimates actions too; train "
                "with dynamics.hears=true"
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
        """Sample a trajectory for each present latent.

        Args:
            present: z_0, (B, d), normalised.
            condition: (B, c), normalised.
            noise: returns new standard normal noise (B, H, d + m) in each call.
            start: a clean trajectory (B, H, d + m), refined over the last `warm_start` levels; None: pure noise.
            goal: the last latent, (B, d), normalised; None: it is free.
            committed: the first actions, (B, K, m), normalised; None: they are free.
            objective_gradient: gradient of J at clean x (B, H, d + m), like x. The sampled density is then weighted by
                exp(J).

        Returns:
            (B, H, d + m), normalised, within the data's range, with all fixed parts.
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
        """Sample the states of x (B, H, d + m) again with the dynamics model, given the actions of x: like x."""
        assert self.dynamics is not None
        actions = x[..., self.dynamics.config["latent_dim"] :]
        estimate = lambda x, level: torch.cat([self.dynamics_x0(x, level), actions], -1)  # noqa: E731
        x = self._noised(x, todo[0].level, self.temperature * noise())
        return self._descend(x, todo, estimate, noise, fix)

    def complete(self, x: torch.Tensor) -> torch.Tensor:
        """Fill the parts of x (B, H, d + m) that the models do not sample. Here the models sample all parts."""
        return x

    def _descend(
        self,
        x: torch.Tensor,
        todo: Sequence[Move],
        estimate: Callable[[torch.Tensor, int], torch.Tensor],
        noise: Callable[[], torch.Tensor],
        fix: Field,
    ) -> torch.Tensor:
        """Denoise x (B, H, d + m) with D = estimate(x, level) at each level. `fix` restores the fixed parts."""
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
        """Estimate D of noisy x (B, H, d + m) at one level: like x.

        If exp(J) weights the density, D changes by Cov[x_0 | x_t] grad J(D), to first order in J. The covariance is
        approximated by sigma_t^2, which is exact for independent entries of variance 1.
        """
        clean = self.planner_x0(x, level, condition)
        if self.config.composition in ("fused", "joint", *HEARING):
            power = self.config.dynamics_power if self.config.composition != "joint" else 0.0
            w = float(self.schedule.alpha_bar[level]) ** power
            if self.config.composition in HEARING:
                real, term = self.heard(x, level)
                clean = (clean + term).clamp(self.low, self.high)
            else:
                real = self.dynamics_x0(x, level)
            d = real.shape[-1]
            clean = torch.cat([w * real + (1 - w) * clean[..., :d], clean[..., d:]], -1)
        if objective_gradient is not None:
            moved = clean + float(self.schedule.sigmas[level]) ** 2 * objective_gradient(clean)
            clean = moved.clamp(self.low, self.high)
        return clean

    def heard(self, x: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the dynamics model's estimate of the states (B, H, d), and what it adds to the planner's, like x.

        Three estimates in one pass: with all in sight, with the states hidden, with the actions hidden.
        """
        assert self.dynamics is not None
        d, rows = self.dynamics.config["latent_dim"], len(x)
        seen = x.new_tensor([[1, 1], [0, 1], [1, 0]]).repeat_interleave(rows, 0)
        noisy = hide(x.repeat(3, 1, 1), seen, d)
        levels = x.new_full((3 * rows,), level, dtype=torch.long)
        output = self.dynamics(noisy, levels, seen)
        clean = self.dynamics.to_clean(output, noisy, levels, self.schedule).clamp(self.low, self.high)
        whole, by_actions, by_states = clean.chunk(3)
        term = torch.cat([whole[..., :d] - by_states[..., :d], whole[..., d:] - by_actions[..., d:]], -1)
        if self.config.composition == "heard":
            term[..., :d] = 0
        return whole[..., :d], term

    def _noised(self, clean: torch.Tensor, level: int, noise: torch.Tensor) -> torch.Tensor:
        a = float(self.schedule.alpha_bar[level])
        return a**0.5 * clean + (1 - a) ** 0.5 * noise

    def planner_x0(self, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        """Estimate D of x (B, H, d + m) with the planner and classifier-free guidance, clamped to the data's range.

        Guidance: D = u + g (c - u), with the unconditional estimate u and the conditional estimate c.
        """
        low, high = self.config.guidance_interval
        inside = low <= float(self.schedule.sigmas[level]) <= high
        return self.guided(x, level, condition, self.config.guidance if inside else 1.0)

    def guided(self, x: torch.Tensor, level: int, condition: torch.Tensor, g: float) -> torch.Tensor:
        """Estimate D of x (B, H, d + m) with the planner at guidance scale g, clamped to the data's range."""
        levels, keep = x.new_full((len(x),), level, dtype=torch.long), x.new_ones(len(x))
        if g in (0, 1):
            output = self.planner(x, levels, condition, g * keep)
            clean = self.planner.to_clean(output, x, levels, self.schedule)
        else:
            # no cat of a tensor with itself: OpenVINO then computes wrong values in a graph of a whole plan
            twice = lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1))  # noqa: E731
            output = self.planner(twice(x), twice(levels), twice(condition), torch.cat([keep, 0 * keep]))
            with_target, without = self.planner.to_clean(output, twice(x), twice(levels), self.schedule).chunk(2)
            clean = without + g * (with_target - without)
        return clean.clamp(self.low, self.high)

    def dynamics_x0(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """Estimate D of the states (B, H, d) with the dynamics model, clamped to the data's range."""
        assert self.dynamics is not None
        d = self.dynamics.config["latent_dim"]
        levels = x.new_full((len(x),), level, dtype=torch.long)
        seen = (x.new_ones(len(x), 2),) if self.dynamics.config.get("hears") else ()
        output = self.dynamics(x, levels, *seen)[..., :d]
        clean = self.dynamics.to_clean(output, x[..., :d], levels, self.schedule)
        return clean.clamp(self.low[:d], self.high[:d])
