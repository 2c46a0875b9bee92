"""A linear-Gaussian control problem in which planner, dynamics model and their product are known exactly.

Trajectories x (H, d + m) are flattened to n = H (d + m) entries; z_0 is given, so its entries have no variance.
The denoisers are exact, D = E[x_0 | x_t], and the library's sampler runs on them unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mpdiffuser.models.denoisers import Denoiser
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule


@dataclass(frozen=True)
class Gaussian:
    """mean (n,), covariance (n, n)."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def given(self, observe: torch.Tensor, value: torch.Tensor, deviation: float) -> "Gaussian":
        """The density conditioned on observe x (r, n) = value (r,), measured with noise of this deviation.

        It is also the product of the density with N(observe x; value, deviation^2).
        """
        innovation = observe @ self.covariance @ observe.T + deviation**2 * torch.eye(len(value), dtype=value.dtype)
        gain = torch.linalg.solve(innovation, observe @ self.covariance).T
        mean = self.mean + gain @ (value - observe @ self.mean)
        covariance = self.covariance - gain @ observe @ self.covariance
        return Gaussian(mean, (covariance + covariance.T) / 2)

    def denoiser(self, schedule: NoiseSchedule) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """(x_t (B, n), level) -> E[x_0 | x_t]."""
        values, vectors = torch.linalg.eigh(self.covariance)

        def clean(x: torch.Tensor, level: int) -> torch.Tensor:
            a = float(schedule.alpha_bar[level])
            gain = a**0.5 * values / (a * values + 1 - a)
            return self.mean + (x - a**0.5 * self.mean) @ vectors * gain @ vectors.T

        return clean


@dataclass(frozen=True)
class System:
    """z_{k+1} = A z_k + B u_k + w, w ~ N(0, noise^2), from z_0 over H rows."""

    A: torch.Tensor
    B: torch.Tensor
    noise: float
    present: torch.Tensor
    horizon: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """d, m, n"""
        d, m = self.B.shape
        return d, m, self.horizon * (d + m)

    @property
    def states(self) -> torch.Tensor:
        """Which entries are states, (n,)."""
        d, m, _ = self.sizes
        return torch.tensor([True] * d + [False] * m).repeat(self.horizon)

    def residuals(self) -> torch.Tensor:
        """R ((H - 1) d, n): R x stacks z_{k+1} - A z_k - B u_k."""
        d, m, n = self.sizes
        rows = torch.zeros(self.horizon - 1, d, self.horizon, d + m, dtype=torch.float64)
        for k in range(self.horizon - 1):
            rows[k, :, k + 1, :d] = torch.eye(d)
            rows[k, :, k, :d], rows[k, :, k, d:] = -self.A, -self.B
        return rows.reshape(-1, n)

    def rollouts(self, actions: Gaussian) -> Gaussian:
        """Density of trajectories under random actions u (H m): p(u) p(z | u)."""
        d, _, n = self.sizes
        # z_0, the residuals and u are independent; x is their image under the inverse of the map to them
        state, action = torch.eye(n, dtype=torch.float64)[self.states], torch.eye(n, dtype=torch.float64)[~self.states]
        inverse = torch.linalg.inv(torch.cat([state[:d], self.residuals(), action]))
        mean = torch.cat([self.present, torch.zeros(n - d - len(action), dtype=torch.float64), actions.mean])
        noise = self.noise**2 * torch.eye(n - d - len(action), dtype=torch.float64)
        covariance = torch.block_diag(torch.zeros(d, d, dtype=torch.float64), noise, actions.covariance)
        return Gaussian(inverse @ mean, inverse @ covariance @ inverse.T)


class ExactPlanner(Denoiser, nn.Module):
    """A planner whose denoiser is exact for its density."""

    def __init__(self, density: Gaussian, latent_dim: int, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.config = {"prediction": "sample", "latent_dim": latent_dim}
        self.clean = density.denoiser(schedule)

    def forward(
        self, x: torch.Tensor, levels: torch.Tensor, condition: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """x (B, H, d + m) -> D (B, H, d + m)."""
        return self.clean(x.flatten(1), int(levels[0])).view_as(x)


class ExactDynamics(Denoiser, nn.Module):
    """A dynamics model whose denoiser is exact for the density p(u) p(z | u) of its data, with noise on both."""

    def __init__(self, density: Gaussian, latent_dim: int, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.config = {"prediction": "sample", "latent_dim": latent_dim}
        self.clean = density.denoiser(schedule)

    def forward(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x (B, H, d + m) -> D of the states (B, H, d)."""
        return self.clean(x.flatten(1), int(levels[0])).view_as(x)[..., : self.config["latent_dim"]]


class HearingDynamics(ExactDynamics):
    """The same, exact for the actions too, and for states or actions that are hidden."""

    def __init__(self, density: Gaussian, latent_dim: int, schedule: NoiseSchedule, states: torch.Tensor) -> None:
        super().__init__(density, latent_dim, schedule)
        self.config["hears"] = True
        self.parts = {}
        for seen, entries in (((True, True), states | ~states), ((False, True), ~states), ((True, False), states)):
            among = entries.to(density.covariance.dtype)
            self.parts[seen] = Gaussian(density.mean, density.covariance * among * among[:, None]).denoiser(schedule)

    def forward(self, x: torch.Tensor, levels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """x (B, H, d + m), seen (B, 2) -> D of what is seen, like x."""
        clean = torch.empty_like(x)
        for (states, actions), denoiser in self.parts.items():
            rows = (seen[:, 0] == states) & (seen[:, 1] == actions)
            clean[rows] = denoiser(x[rows].flatten(1), int(levels[0])).view_as(x[rows])
        return clean


@dataclass(frozen=True)
class Distance:
    """Distance of a density from a reference, and of its trajectories from the system.

    mean: |difference of means| in deviations of the reference (root of its covariance's trace). covariance: Frobenius
    norm of the difference, relative. violation: root mean square of z_{k+1} - A z_k - B u_k, in deviations of the
    system's own noise (1 = as the system itself).
    """

    mean: float
    covariance: float
    violation: float


@dataclass(frozen=True)
class Problem:
    """The system and the densities of its models.

    planner p_P(z, u); dynamics p_D(z | u) p(u); product p_P(z, u) p_D(z | u); feasible p_P(u) p_D(z | u).
    hears: whether the dynamics model estimates actions too.
    """

    system: System
    planner: Gaussian
    dynamics: Gaussian
    product: Gaussian
    feasible: Gaussian
    hears: bool = False

    def sampler(self, levels: int = 100, temperature: float = 1.0, **config) -> Sampler:
        schedule, (d, m, _) = NoiseSchedule(levels), self.system.sizes
        free = torch.full((d + m,), 1e9, dtype=torch.float64)
        planner, dynamics = ExactPlanner(self.planner, d, schedule), ExactDynamics(self.dynamics, d, schedule)
        if self.hears:
            dynamics = HearingDynamics(self.dynamics, d, schedule, self.system.states)
        return Sampler(planner, dynamics, schedule, -free, free, SamplerConfig(temperature=temperature, **config))  # type: ignore[arg-type]

    def equilibrium(self, states: tuple[float, float], actions: tuple[float, float]) -> torch.Tensor:
        """The fixed point (n,) of clean trajectories whose states and actions each follow their gradient of
        w_P log p_P(z, u) + w_D log p_D(z | u).

        Args:
            states, actions: the pairs of weights (w_P, w_D).
        """
        d = self.system.sizes[0]
        residuals = self.system.residuals() / self.system.noise
        planner = torch.linalg.inv(self.planner.covariance[d:, d:])
        parts = (planner, residuals[:, d:].T @ residuals[:, d:])
        offsets = (planner @ self.planner.mean[d:], -residuals[:, d:].T @ residuals[:, :d] @ self.system.present)
        is_state = self.system.states[d:, None]
        weight = [torch.where(is_state, torch.tensor(s).double(), torch.tensor(a)) for s, a in zip(states, actions)]
        field = sum(w * part for w, part in zip(weight, parts))
        return torch.cat(
            [self.system.present, torch.linalg.solve(field, sum(w[:, 0] * h for w, h in zip(weight, offsets)))]
        )

    def distance(self, drawn: Gaussian, reference: Gaussian) -> Distance:
        """Distance of one density from another, and of its trajectories from the system."""
        residuals = self.system.residuals()
        square = (residuals @ drawn.mean).square().sum() + (residuals @ drawn.covariance @ residuals.T).trace()
        return Distance(
            float((drawn.mean - reference.mean).norm() / reference.covariance.trace().sqrt()),
            float((drawn.covariance - reference.covariance).norm() / reference.covariance.norm()),
            float((square / len(residuals)).sqrt() / self.system.noise),
        )

    def end_positions(self, drawn: Gaussian) -> tuple[float, float]:
        """Mean last position: as planned, and where the planned actions lead."""
        actions = ~self.system.states
        mean, covariance = drawn.mean[actions], drawn.covariance[actions][:, actions]
        last = (self.system.horizon - 1) * sum(self.system.sizes[:2])
        return float(drawn.mean[last]), float(self.system.rollouts(Gaussian(mean, covariance)).mean[last])

    def drawn(self, goal: torch.Tensor | None = None, **config) -> Gaussian:
        """Exact mean and covariance of the sampler's trajectories.

        With these denoisers a trajectory is affine in the sampler's noise: x = mean + sum_j M_j e_j over its draws j. A
        call without noise gives the mean; a call with a batch of all unit vectors gives all M_j.
        """
        sampler = self.sampler(**config)
        shape, n = (self.system.horizon, sum(self.system.sizes[:2])), self.system.sizes[2]
        calls = 0

        def run(batch: int, noise: Callable[[], torch.Tensor]) -> torch.Tensor:
            goals = None if goal is None else goal.expand(batch, -1)
            present = self.system.present.expand(batch, -1)
            return sampler(present, present.new_zeros(batch, 1), noise, goal=goals).flatten(1)

        def silence() -> torch.Tensor:
            nonlocal calls
            calls += 1
            return torch.zeros(1, *shape, dtype=torch.float64)

        mean = run(1, silence)[0]
        draw = iter(range(calls))

        def unit() -> torch.Tensor:
            noise, k = torch.zeros(calls, n, n, dtype=torch.float64), next(draw)
            noise[k] = torch.eye(n)
            return noise.view(calls * n, *shape)

        through = run(calls * n, unit) - mean
        return Gaussian(mean, through.T @ through)


def problem(horizon: int = 8) -> Problem:
    """A cart on a line (position, speed; one force) that must end at 0.6.

    The planner's data come from a cart with 0.7 of the true force and ten times the noise. Its plans reach the goal,
    but the true cart does not follow them.
    """
    A = torch.tensor([[1.0, 0.3], [0.0, 1.0]], dtype=torch.float64)
    B = torch.tensor([[0.0], [0.3]], dtype=torch.float64)
    present = torch.tensor([-0.4, 0.0], dtype=torch.float64)
    system = System(A, B, 0.02, present, horizon)
    believed = System(A, 0.7 * B, 0.2, present, horizon)
    steps = torch.arange(horizon, dtype=torch.float64)
    smooth = 0.5 * torch.exp(-((steps[:, None] - steps) ** 2) / 8) + 0.01 * torch.eye(horizon)
    planner = believed.rollouts(Gaussian(torch.zeros(horizon, dtype=torch.float64), smooth))
    d, _, n = system.sizes
    last = torch.zeros(1, n, dtype=torch.float64)
    last[0, (horizon - 1) * (n // horizon)] = 1  # the last position
    planner = planner.given(last, torch.tensor([0.6], dtype=torch.float64), 0.1)
    broad = Gaussian(torch.zeros(horizon, dtype=torch.float64), torch.eye(horizon, dtype=torch.float64))
    product = planner.given(system.residuals(), torch.zeros((horizon - 1) * d, dtype=torch.float64), system.noise)
    actions = Gaussian(planner.mean[~system.states], planner.covariance[~system.states][:, ~system.states])
    return Problem(system, planner, system.rollouts(broad), product, system.rollouts(actions))
