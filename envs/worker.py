"""The process behind envs.vector.VectorEnv: hosts some environments and answers requests over a socket.

Started as `python -m envs.worker FILE_DESCRIPTOR` rather than through multiprocessing's spawn, which would import the
parent's main module, and torch with it. It ends when the socket closes, so it never outlives its parent.
"""

import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs.gym_env import GymEnv
from envs.simulator import DMControlEnv, Observation, stack


class Host:
    """Environments stepped one after the other; a finished one stands still until it is reset."""

    def __init__(self, count: int, options: dict[str, Any]) -> None:
        kind = GymEnv if "env_id" in options else DMControlEnv
        self.envs: list[Any] = [kind(**options) for _ in range(count)]
        self.last: list[tuple[Observation, float, bool, bool, dict]] = [None] * count  # type: ignore[list-item]

    def about(self) -> tuple[Any, Any, float]:
        return self.envs[0].observation_space, self.envs[0].action_space, self.envs[0].decision_seconds

    def reset(self, seeds: list[int | None], mask: np.ndarray) -> tuple[Observation, np.ndarray]:
        for index in np.flatnonzero(mask):
            observation, info = self.envs[index].reset(seed=seeds[index])
            self.last[index] = observation, 0.0, False, False, info
        return stack([step[0] for step in self.last]), np.stack([step[4]["physics"] for step in self.last])

    def step(self, actions: np.ndarray) -> tuple[Observation, *tuple[np.ndarray, ...]]:
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observation, _, terminated, truncated, info = self.last[index]
            if terminated or truncated:
                self.last[index] = observation, 0.0, terminated, truncated, info | {"cost": 0.0}
            else:
                self.last[index] = env.step(action)
        observations, rewards, terminations, truncations, infos = zip(*self.last)
        physics, costs = np.stack([info["physics"] for info in infos]), [info.get("cost", 0.0) for info in infos]
        return stack(list(observations)), *map(np.array, (rewards, terminations, truncations, physics, costs))

    def peek(self, actions: np.ndarray) -> Observation:
        return stack([env.peek(plan) for env, plan in zip(self.envs, actions, strict=True)])

    def gl_name(self) -> str:
        from envs import rendering

        return rendering.gl_name()

    def modules(self) -> list[str]:
        return sorted(sys.modules)


def serve(connection: Connection) -> None:
    """Answer (method, arguments) with (None, result) or ((exception name, message, traceback), None)."""
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
