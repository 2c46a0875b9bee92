"""Episodes of sampling MPC in dm_control: python -m envs.datasets make mppi/quadruped_walk PATH

MPPI (`envs.experts.mppi`) plans on the true simulator, so a task needs no expert policy. As in `envs.collect`, three of
four episodes are disturbed by random actions. The data hold states, actions and rewards, and no frames. The same seed
gives the same rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from envs.collect import DISTURBANCES, DISTURBED, Actor
from envs.datasets.episode_files import pool
from envs.doctor import versions
from envs.experts import task_options
from envs.experts.mppi import MPPI
from envs.record import dm_control_record
from envs.simulator import DMControlEnv
from mpdiffuser.console import progress
from mpdiffuser.episodes import EpisodesWriter
from mpdiffuser.files import writing
from mpdiffuser.record import TRUE_STATE, Actions, Observation, Record


@dataclass(frozen=True)
class MPPIData:
    """Episodes of a task.

    Args:
        task: of `envs.experts.mppi.SETTINGS`. episodes: their number.
        decisions: of an episode; None: the task's limit.
    """

    task: str
    episodes: int = 100
    decisions: int | None = None

    def write(self, path: Path, seed: int) -> None:
        """Write the episodes as an Episodes folder, or go on where it was cut off.

        Raises:
            InputError: if `path` exists, if another process writes it, or if it cannot be written.
        """
        options = task_options(self.task) | {"name": self.task}
        env = DMControlEnv(self.task, action_repeat=options["action_repeat"])
        decisions = self.decisions or math.ceil(env.step_limit / env.action_repeat)
        states, actions = env.observation_space.shape or (), env.action_space.shape or ()
        info = {
            "task": self.task,
            "environment": dm_control_record(options, "fast"),
            "decision_seconds": env.decision_seconds,
            "policy": "python -m envs.experts.mppi",
            "disturbance_rates": list(DISTURBANCES),
            "disturbance_decisions": list(DISTURBED),
            "seed": seed,
            "versions": {"numpy": np.__version__, **versions()},
        }
        env.close()
        shapes = {"observations": states, "actions": actions, "rewards": ()}
        record = Record({"observations": Observation(TRUE_STATE, states)}, Actions.unit(actions[0]))
        rows = decisions + 1
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with EpisodesWriter(path, self.episodes * rows, info, record) as writer:
            arrays = {key: writer.create(key, shape, np.float32) for key, shape in shapes.items()}
            ends = {key: writer.create(key, (), bool) for key in ("terminations", "truncations")}
            for number, found in self._episodes(seed, decisions, writer.progress):
                first = number * rows
                for key, values in found.items():
                    arrays[key][first : first + len(values)] = values
                ends["truncations"][first + decisions - 1] = True
                writer.keep(number + 1)
            writer.offsets = np.arange(self.episodes + 1) * rows

    def _episodes(self, seed: int, decisions: int, first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield the number and the rows of each episode, in their order, from `first` on."""
        left = range(first, self.episodes)
        run = partial(run_episode, self.task, seed, decisions)
        with (
            pool(len(left)) as workers,
            progress(total=self.episodes, desc=f"mppi {self.task}", initial=first, unit="episode") as bar,
        ):
            for number, found in zip(left, workers.map(run, left)):
                yield number, found
                bar.update(1)
                bar.set_postfix_str(f"return {found['rewards'].sum():.1f}")


def run_episode(task: str, seed: int, decisions: int, number: int) -> dict[str, np.ndarray]:
    """Return observations (T + 1, o), actions (T, m) and rewards (T,) of an episode."""
    env = DMControlEnv(task, action_repeat=task_options(task)["action_repeat"])
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    controller = MPPI(env, own, threads=1)
    actor = Actor([controller], DISTURBANCES[number % len(DISTURBANCES)], own, decisions)
    state, _ = env.reset(seed=own)
    states, actions, rewards = [state], [], []
    for _ in range(decisions):
        action = actor.decide(controller.act()).astype(np.float32)
        state, reward, _, _, _ = env.step(action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    controller.close()
    env.close()
    found = {"observations": states, "actions": actions, "rewards": rewards}
    return {key: np.array(values, np.float32) for key, values in found.items()}
