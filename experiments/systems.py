"""Two small systems with known dynamics: a car in a U-shaped maze, and a pendulum that must swing up.

States z (B, d) and actions u (B, m) in [-1, 1] are float32 tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class System(Protocol):
    """A system that can be simulated, with a demonstrator and a goal."""

    @property
    def name(self) -> str: ...

    @property
    def latent_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    def step(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The next states (B, d)."""

    def start(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """First states of demonstrations, (B, d)."""

    def anywhere(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """First states of episodes with random actions, (B, d)."""

    def policy(self, z: torch.Tensor) -> torch.Tensor:
        """The demonstrator's actions (B, m)."""

    def reached(self, z: torch.Tensor) -> torch.Tensor:
        """Whether states (..., d) are at the goal."""


@dataclass(frozen=True)
class Car:
    """A unicycle: z = (x, y, cos heading, sin heading), u = (speed, turn).

    The room is [-1, 1]^2; a wall from its left side to x = 0.4 makes it a U. A move that would end in a wall only turns
    the car.
    """

    name: str = "car"
    latent_dim: int = 4
    action_dim: int = 2
    stride: float = 0.17
    turn: float = 0.5
    wall: tuple[float, float] = (0.4, 0.15)  # right end, half width
    waypoints: tuple[tuple[float, float], ...] = ((0.7, -0.6), (0.7, 0.6), (-0.7, 0.6))

    def free(self, position: torch.Tensor) -> torch.Tensor:
        """Whether positions (..., 2) are outside walls."""
        x, y = position.unbind(-1)
        return (position.abs() <= 1).all(-1) & ~((x < self.wall[0]) & (y.abs() < self.wall[1]))

    def step(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        speed, turn = u.clamp(-1, 1).unbind(-1)
        heading = torch.atan2(z[..., 3], z[..., 2]) + self.turn * turn
        direction = torch.stack([heading.cos(), heading.sin()], -1)
        moved = z[..., :2] + self.stride * speed[..., None] * direction
        position = torch.where(self.free(moved)[..., None], moved, z[..., :2])
        return torch.cat([position, direction], -1)

    def start(self, count: int, generator: torch.Generator) -> torch.Tensor:
        spread = torch.rand(count, 3, generator=generator) * 2 - 1
        heading = 0.8 * spread[:, 2]
        return torch.stack([-0.7 + 0.15 * spread[:, 0], -0.6 + 0.15 * spread[:, 1], heading.cos(), heading.sin()], -1)

    def anywhere(self, count: int, generator: torch.Generator) -> torch.Tensor:
        draw = torch.rand(4 * count + 16, 3, generator=generator) * 2 - 1
        draw = draw[self.free(draw[:, :2])][:count]
        heading = math.pi * draw[:, 2]
        return torch.stack([draw[:, 0], draw[:, 1], heading.cos(), heading.sin()], -1)

    def policy(self, z: torch.Tensor) -> torch.Tensor:
        x, y = z[:, 0], z[:, 1]
        leg = torch.where(y > 0.35, 2, torch.where(x > 0.55, 1, 0))
        offset = torch.tensor(self.waypoints)[leg] - z[:, :2]
        error = torch.atan2(offset[:, 1], offset[:, 0]) - torch.atan2(z[:, 3], z[:, 2])
        error = torch.atan2(error.sin(), error.cos())
        speed = (offset.norm(dim=-1) / self.stride).clamp(max=1) * error.cos().clamp(min=0)
        speed = torch.where(self.reached(z), 0.0, speed)
        return torch.stack([speed, (error / self.turn).clamp(-1, 1)], -1)

    def reached(self, z: torch.Tensor) -> torch.Tensor:
        return (z[..., :2] - torch.tensor(self.waypoints[-1])).norm(dim=-1) < 0.25


@dataclass(frozen=True)
class Pendulum:
    """A rod of mass 1 and length 1 with a weak motor: z = (cos a, sin a, speed / 8), a = angle from upright."""

    name: str = "pendulum"
    latent_dim: int = 3
    action_dim: int = 1
    torque: float = 2.5
    interval: float = 0.1
    substeps: int = 4
    gravity: float = 10.0

    def step(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        angle, speed = torch.atan2(z[..., 1], z[..., 0]), 8 * z[..., 2]
        dt = self.interval / self.substeps
        for _ in range(self.substeps):
            push = 3 * self.torque * u[..., 0].clamp(-1, 1)
            speed = (speed + dt * (1.5 * self.gravity * angle.sin() + push)).clamp(-8, 8)
            angle = angle + dt * speed
        return torch.stack([angle.cos(), angle.sin(), speed / 8], -1)

    def start(self, count: int, generator: torch.Generator) -> torch.Tensor:
        spread = torch.rand(count, 2, generator=generator) * 2 - 1
        angle = math.pi + 0.5 * spread[:, 0]
        return torch.stack([angle.cos(), angle.sin(), 0.1 * spread[:, 1]], -1)

    def anywhere(self, count: int, generator: torch.Generator) -> torch.Tensor:
        spread = torch.rand(count, 2, generator=generator) * 2 - 1
        angle = math.pi * spread[:, 0]
        return torch.stack([angle.cos(), angle.sin(), spread[:, 1]], -1)

    def policy(self, z: torch.Tensor) -> torch.Tensor:
        angle, speed = torch.atan2(z[:, 1], z[:, 0]), 8 * z[:, 2]
        energy = speed**2 / 6 + self.gravity / 2 * (angle.cos() - 1)
        pump = -energy * torch.where(speed.abs() < 0.05, 1.0, speed.sign())
        balance = -(8 * angle + 2 * speed) / self.torque
        near = (angle.abs() < 0.5) & (speed.abs() < 3)
        return torch.where(near, balance, pump).clamp(-1, 1)[:, None]

    def reached(self, z: torch.Tensor) -> torch.Tensor:
        return (z[..., 0] > 0.9) & (z[..., 2].abs() < 0.2)


def episodes(
    system: System,
    begin: torch.Tensor,
    steps: int,
    act: Callable[[torch.Tensor], torch.Tensor],
    noise: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States (B, steps, d) and actions (B, steps, m) of a policy, with a slowly changing disturbance of the actions.

    Args:
        begin: first states (B, d). act: states (B, d) -> actions (B, m). noise: scale of the disturbance.
    """
    z, states, actions = begin, [], []
    disturbance = torch.zeros(len(begin), system.action_dim)
    for _ in range(steps):
        fresh = torch.randn(disturbance.shape, generator=generator)
        disturbance = 0.8 * disturbance + 0.6 * noise * fresh
        u = (act(z) + disturbance).clamp(-1, 1)
        states.append(z)
        actions.append(u)
        z = system.step(z, u)
    return torch.stack(states, 1), torch.stack(actions, 1)


def demonstrations(system: System, count: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slightly disturbed episodes of the demonstrator."""
    generator = torch.Generator().manual_seed(seed)
    return episodes(system, system.start(count, generator), steps, system.policy, 0.15, generator)


def play(system: System, count: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Episodes of random actions from anywhere."""
    generator = torch.Generator().manual_seed(seed)
    idle = lambda z: torch.zeros(len(z), system.action_dim)  # noqa: E731
    return episodes(system, system.anywhere(count, generator), steps, idle, 0.8, generator)
