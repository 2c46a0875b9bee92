"""The process behind envs.vector.VectorEnv: it holds some of the environments and answers requests over a socket.

It is started as `python -m envs.worker FILE_DESCRIPTOR`: multiprocessing's spawn would import the parent's main module,
and torch with it. It ends when the socket closes, so it never outlives its parent.
"""

import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import envs
from envs.observations import Observation, Observed, stack
from envs.protocol import Environment


class Host:
    """Environments that are stepped one after the other; one whose episode has ended waits for its reset.

    Args:
        count: B, their number.
        record, observation: see `envs.make`.
    """

    def __init__(self, count: int, record: Mapping[str, Any], observation: Observed) -> None:
        self.envs: list[Environment] = [envs.make(record, observation) for _ in range(count)]
        self.goals: list[Observation | None] = [None] * count
        self.last: list[tuple[Observation, float, bool, bool, dict]] = [None] * count  # type: ignore[list-item]

    def about(self) -> tuple[Any, ...]:
        """Observation space, action space, decision_seconds and can_peek."""
        env = self.envs[0]
        return env.observation_space, env.action_space, env.decision_seconds, env.can_peek

    def reset(self, seeds: list[int | None], mask: np.ndarray) -> tuple[Observation, np.ndarray, Observation | None]:
        """Reset where mask (B,) is set; observations (B, ...), physics (B, p) and goals (B, ...) of all.

        The goals are None unless every environment gave one.
        """
        for index in np.flatnonzero(mask):
            observation, info = self.envs[index].reset(seed=seeds[index])
            self.last[index], self.goals[index] = (observation, 0.0, False, False, info), info.get("goal")
        goals = [goal for goal in self.goals if goal is not None]
        return (
            stack([step[0] for step in self.last]),
            np.stack([step[4]["physics"] for step in self.last]),
            stack(goals) if len(goals) == len(self.envs) else None,
        )

    def step(self, actions: np.ndarray) -> tuple[Observation, *tuple[np.ndarray, ...]]:
        """Observations, rewards, terminations, truncations, physics and costs, B leading, after actions (B, m)."""
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observation, _, terminated, truncated, info = self.last[index]
            if terminated or truncated:
                self.last[index] = observation, 0.0, terminated, truncated, info | {"cost": 0.0}
            else:
                self.last[index] = env.step(action)
        observations, rewards, terminations, truncations, infos = zip(*self.last)
        physics, costs = np.stack([info["physics"] for info in infos]), [info["cost"] for info in infos]
        return stack(observations), *map(np.array, (rewards, terminations, truncations, physics, costs))

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (B, K, ...) after each of the actions (B, K, m)."""
        return stack([env.peek(plan) for env, plan in zip(self.envs, actions, strict=True)])

    def render_first(self) -> np.ndarray | None:
        """A picture of the first environment, (height, width, 3) uint8; None where there is none."""
        return self.envs[0].render()

    def gl_name(self) -> str:
        """Rendering back-end and driver."""
        from envs import rendering

        return rendering.gl_name()

    def modules(self) -> list[str]:
        """Names of the loaded modules."""
        return sorted(sys.modules)


def serve(connection: Connection) -> None:
    """Answer (method, arguments) with (None, result) or ((exception name, message, traceback), None).

    The first request carries the arguments of `Host`.
    """
    host: Host | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            if host is None:
                host = Host(*arguments)
                reply: Any = (None, host.about())
            else:
                reply = (None, getattr(host, method)(*arguments))
        except Exception as error:
            reply = ((type(error).__name__, str(error), traceback.format_exc()), None)
        try:
            connection.send(reply)
        except ConnectionError:
            return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    serve(Connection(int(sys.argv[1])))
