"""Rewards of dm_control tasks for many states at once; they equal `task.get_reward`."""

from collections.abc import Callable
from typing import NamedTuple

import mujoco
import numpy as np
from dm_control.utils.rewards import tolerance

from mpdiffuser.errors import InputError


class States(NamedTuple):
    """Simulator states with any leading dimensions.

    positions (..., nq), velocities (..., nv), controls (..., nu) that led here, sensors (..., nsensordata).
    """

    positions: np.ndarray
    velocities: np.ndarray
    controls: np.ndarray
    sensors: np.ndarray


Reward = Callable[[mujoco.MjModel, States], np.ndarray]


def small(values: np.ndarray) -> np.ndarray:
    """1 at 0, falling quadratically to 0 at |value| = 1."""
    return tolerance(values, margin=1, value_at_margin=0, sigmoid="quadratic")


def cartpole_swingup(model: mujoco.MjModel, states: States) -> np.ndarray:
    upright = (np.cos(states.positions[..., 1]) + 1) / 2
    centered = (1 + tolerance(states.positions[..., 0], margin=2)) / 2
    small_control = (4 + small(states.controls[..., 0])) / 5
    small_velocity = (1 + tolerance(states.velocities[..., 1], margin=5)) / 2
    return upright * small_control * small_velocity * centered


def pendulum_swingup(model: mujoco.MjModel, states: States) -> np.ndarray:
    return tolerance(np.cos(states.positions[..., 0]), (np.cos(np.deg2rad(8)), 1))


def reacher_easy(model: mujoco.MjModel, states: States) -> np.ndarray:
    shoulder = states.positions[..., 0]
    hand = shoulder + states.positions[..., 1]
    upper, lower = model.body("hand").pos[0], model.body("finger").pos[0]
    x = upper * np.cos(shoulder) + lower * np.cos(hand)
    y = upper * np.sin(shoulder) + lower * np.sin(hand)
    target = model.geom("target")
    distance = np.hypot(target.pos[0] - x, target.pos[1] - y)
    return tolerance(distance, (0, target.size[0] + model.geom("finger").size[0]))


def point_mass_easy(model: mujoco.MjModel, states: States) -> np.ndarray:
    size = model.geom("target").size[0]
    distance = np.hypot(states.positions[..., 0], states.positions[..., 1])
    near = tolerance(distance, (0, size), margin=size)
    return near * (small(states.controls).mean(-1) + 4) / 5


def ball_in_cup_catch(model: mujoco.MjModel, states: States) -> np.ndarray:
    target = (model.body("cup").pos + model.site("target").pos)[[0, 2]] + states.positions[..., :2]
    ball = model.body("ball").pos[[0, 2]] + states.positions[..., 2:4]
    room = model.site("target").size[[0, 2]] - model.geom("ball").size[0]
    return (np.abs(target - ball) < room).all(-1).astype(float)


def walker_walk(model: mujoco.MjModel, states: States) -> np.ndarray:
    height = model.body("torso").pos[2] + states.positions[..., 0]
    standing = tolerance(height, (1.2, np.inf), margin=0.6)
    upright = (1 + np.cos(states.positions[..., 2])) / 2
    speed = states.sensors[..., model.sensor("torso_subtreelinvel").adr[0]]
    moving = tolerance(speed, (1.0, np.inf), margin=0.5, value_at_margin=0.5, sigmoid="linear")
    return (3 * standing + upright) / 4 * (5 * moving + 1) / 6


def cheetah_run(model: mujoco.MjModel, states: States) -> np.ndarray:
    speed = states.sensors[..., model.sensor("torso_subtreelinvel").adr[0]]
    return tolerance(speed, (10.0, np.inf), margin=10.0, value_at_margin=0, sigmoid="linear")


def quadruped(model: mujoco.MjModel, states: States, speed: float) -> np.ndarray:
    """Reward (...) of moving forwards in the torso's frame at `speed` m/s or faster, with the torso upright."""
    root = model.joint("root").qposadr[0]
    quaternion = states.positions[..., root + 3 : root + 7]
    w2, x2, y2, z2 = np.moveaxis(quaternion**2, -1, 0)
    upright = (w2 + z2) / (w2 + x2 + y2 + z2)  # (1 + cosine) / 2 of the torso's angle to the vertical
    forwards = states.sensors[..., model.sensor("velocimeter").adr[0]]
    return upright * tolerance(forwards, (speed, np.inf), margin=speed, value_at_margin=0.5, sigmoid="linear")


def quadruped_walk(model: mujoco.MjModel, states: States) -> np.ndarray:
    return quadruped(model, states, 0.5)


def quadruped_run(model: mujoco.MjModel, states: States) -> np.ndarray:
    return quadruped(model, states, 5.0)


REWARDS: dict[str, Reward] = {
    function.__name__: function
    for function in (
        cartpole_swingup,
        pendulum_swingup,
        reacher_easy,
        point_mass_easy,
        ball_in_cup_catch,
        walker_walk,
        cheetah_run,
        quadruped_walk,
        quadruped_run,
    )
}


def reward_of(task: str) -> Reward:
    """The reward function of a task.

    Raises:
        InputError: if it has none here.
    """
    if task not in REWARDS:
        raise InputError(f"task={task!r} has no vectorised reward; allowed: {', '.join(REWARDS)}")
    return REWARDS[task]
