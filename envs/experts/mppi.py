"""Sampling model-predictive control on the true simulator: MPPI over linear splines, rolled out by mujoco.rollout.

python -m envs.experts.mppi cartpole_swingup --episodes 1
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from mujoco import rollout

from envs.experts.rewards import REWARDS, States, reward_of
from envs.simulator import DMControlEnv
from mpdiffuser.commands import entry_point
from mpdiffuser.errors import InputError

STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)


@dataclass(frozen=True)
class Settings:
    """Settings of a task.

    Args:
        horizon: control steps of a plan.
        knots: of the linear spline of actions over the horizon.
        samples: rollouts per iteration.
        noise: standard deviation of the knots' perturbation, in units of the action range [-1, 1].
        replan: control steps between two plannings.
        iterations: of sampling and averaging per planning.
        temperature: of the rollouts' softmax weights, relative to the range of returns; small: the best rollout alone.
    """

    horizon: int
    knots: int
    samples: int
    noise: float
    replan: int = 2
    iterations: int = 1
    temperature: float = 0.03


SETTINGS = {
    "cartpole_swingup": Settings(100, 10, 48, 0.5),
    "pendulum_swingup": Settings(100, 10, 48, 0.5),
    "reacher_easy": Settings(30, 5, 32, 0.3),
    "point_mass_easy": Settings(40, 5, 32, 0.3),
    "ball_in_cup_catch": Settings(40, 8, 64, 0.5, replan=1),
    "walker_walk": Settings(30, 6, 40, 0.4),
    "cheetah_run": Settings(60, 12, 160, 0.6, replan=3, iterations=2),
    "quadruped_walk": Settings(30, 6, 48, 0.4),
    "quadruped_run": Settings(30, 6, 48, 0.4),
}


def spline_matrix(points: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Matrix (len(points), len(knots)) that interpolates values at `knots` linearly at `points`, constant outside."""
    return np.stack([np.interp(points, knots, unit) for unit in np.eye(len(knots))], axis=1)


class MPPI:
    """Plans from the environment's current state; `act` gives the action of one environment step.

    Args:
        env: the environment to control; it is read, never changed.
        seed: of the perturbations.
        threads: of the rollouts.
        settings: fields of `Settings` that replace the task's own.

    Raises:
        InputError: if the task has no vectorised reward, or a setting is unknown.
    """

    def __init__(self, env: DMControlEnv, seed: int = 0, threads: int = 2, **settings: Any) -> None:
        self.reward = reward_of(env.task)
        unknown = set(settings) - set(Settings.__dataclass_fields__)
        if unknown:
            allowed = ", ".join(Settings.__dataclass_fields__)
            raise InputError(f"MPPI settings {sorted(unknown)} are unknown; allowed: {allowed}")
        self.env = env
        self.settings = Settings(**{**vars(SETTINGS[env.task]), **settings})
        self.random = np.random.default_rng(seed)
        self._data = [mujoco.MjData(env.model) for _ in range(threads)]
        self._pool = rollout.Rollout(nthread=threads if threads > 1 else 0)
        decisions = max(1, round(self.settings.horizon / env.action_repeat))
        self.replan = max(1, self.settings.replan // env.action_repeat)
        knots = np.linspace(0, decisions - 1, self.settings.knots)
        self._spread = spline_matrix(np.arange(decisions), knots)
        self._shift = spline_matrix(knots + self.replan, knots)
        self.reset()

    def reset(self) -> None:
        """Start from a plan of zeros."""
        self.plan = np.zeros((self.settings.knots, self.env.action_space.shape[0]))  # type: ignore[index]
        self._age = self.replan

    def act(self) -> np.ndarray:
        """The next action (m,), in [-1, 1]; plans every `replan` control steps, starting from the shifted last plan."""
        if self._age >= self.replan:
            self.plan = self._shift @ self.plan
            for _ in range(self.settings.iterations):
                self._improve()
            self._age = 0
        action = self._spread[self._age] @ self.plan
        self._age += 1
        return action.astype(np.float32)

    def _improve(self) -> None:
        noise = self.settings.noise * self.random.standard_normal((self.settings.samples, *self.plan.shape))
        noise[0] = 0
        plans = np.clip(self.plan + noise, -1, 1)
        states = self.rollout(self._spread @ plans)
        returns = self.reward(self.env.model, states).sum(1)
        if np.ptp(returns) == 0:  # no rollout is rewarded more than another: follow the one of highest velocity
            self.plan = plans[np.argmax((states.velocities**2).sum((1, 2)))]
            return
        weights = np.exp((returns - returns.max()) / (self.settings.temperature * np.ptp(returns)))
        self.plan = np.tensordot(weights / weights.sum(), plans, 1)

    def rollout(self, actions: np.ndarray) -> States:
        """States (N, T * action_repeat, ...) after each control step of actions (N, T, m) from the present state."""
        model, substeps = self.env.model, self.env._substeps
        low, high = model.actuator_ctrlrange.T
        controls = np.repeat(low + (actions + 1) / 2 * (high - low), self.env.action_repeat, axis=1)
        inputs = np.repeat(controls, substeps, axis=1)
        inputs = np.concatenate([inputs, inputs[:, -1:]], axis=1)  # sensors lag the state by one physics step
        start = np.empty(mujoco.mj_stateSize(model, STATE))
        mujoco.mj_getState(model, self.env.data, start, STATE)
        warmstart = self.env.data.qacc_warmstart[None]
        states, sensors = self._pool.rollout(model, self._data, start[None], inputs, initial_warmstart=warmstart)
        last = np.arange(controls.shape[1]) * substeps + substeps - 1
        positions, velocities = np.split(states[:, last, 1 : 1 + model.nq + model.nv], [model.nq], axis=-1)
        return States(positions, velocities, controls, sensors[:, last + 1])

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


def mppi_returns(task: str, seeds: Sequence[int], action_repeat: int = 1, **settings: Any) -> np.ndarray:
    """Return of one MPPI episode for each seed, (len(seeds),)."""
    reward_of(task)
    env = DMControlEnv(task, action_repeat=action_repeat)
    totals = np.zeros(len(seeds))
    for index, seed in enumerate(seeds):
        env.reset(seed=int(seed))
        controller = MPPI(env, seed=int(seed), **settings)
        done = False
        while not done:
            _, reward, terminated, truncated, _ = env.step(controller.act())
            totals[index] += reward
            done = terminated or truncated
        controller.close()
    env.close()
    return totals


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.experts.mppi", description="Returns of MPPI on a task.")
    parser.add_argument("task", help=", ".join(REWARDS))
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1_000, help="of the first episode (default: %(default)s)")
    parser.add_argument(
        "--action-repeat", type=int, default=1, help="control steps per decision (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    for seed in range(options.seed, options.seed + options.episodes):
        start = time.perf_counter()
        (total,) = mppi_returns(options.task, [seed], options.action_repeat, threads=options.threads)
        print(f"seed {seed}: return {total:.0f} in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
