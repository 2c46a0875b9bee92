"""Many environments at once, in worker processes."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from envs.observations import Observation, Observed, concatenate
from envs.record import check_record
from mpdiffuser.errors import InputError
from mpdiffuser.machine import available_cores


class VectorEnv(gymnasium.vector.VectorEnv):
    """B copies of one environment, distributed over worker processes.

    An environment whose episode has ended ignores further steps until it is reset: reward and cost are 0, the
    observation and the flags stay as they were. `decision_seconds` is the simulated time between two steps; None: not
    known. `can_peek` says whether the simulators' state can be restored, as `peek` needs it.
    `infos["physics"]` (B, p) is each environment's `get_physics()`, `infos["cost"]` (B,) the cost of the step. The
    infos of `reset` also have `goal`, observations (B, ...), where every environment gives one.

    Args:
        record, observation: see `envs.make`.
        num_envs: B.
        processes: their number; None: one for each core. It is at most B.

    Raises:
        InputError: on a bad argument.
        RuntimeError: where a worker fails, with the worker's traceback, or dies.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self, record: Mapping[str, Any], num_envs: int, processes: int | None = None, observation: Observed = "states"
    ) -> None:
        self._workers: list[_Worker] = []
        check_record(record)
        for option, value in (("num_envs", num_envs), ("processes", processes)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{option}={value!r}: must be a whole number of at least 1")
        self.num_envs = num_envs
        shares = np.array_split(np.arange(num_envs), min(processes or available_cores(), num_envs))
        self._bounds = [(int(share[0]), int(share[-1]) + 1) for share in shares]
        try:
            self._workers = [_Worker(index) for index in range(len(shares))]
            for worker, (start, stop) in zip(self._workers, self._bounds):
                worker.send("host", stop - start, record, observation)
            self.single_observation_space, self.single_action_space, *rest = self._receive(self._workers)[0]
            self.decision_seconds, self.can_peek = rest
        except BaseException:
            self.close()
            raise
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start episodes.

        Args:
            seed: one for each environment, or s for s, s + 1, ...
            options: "reset_mask" (B,) bool: only these environments are reset.
        """
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + index for index in range(self.num_envs)]
        seeds = [None if value is None else int(value) for value in seed]
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if len(seeds) != self.num_envs or mask.shape != (self.num_envs,):
            raise InputError(f"reset of {self.num_envs} environments: found {len(seeds)} seeds and mask {mask.shape}")
        observations, physics, goals = zip(*self._call("reset", seeds, mask))
        infos: dict[str, Any] = {"physics": np.concatenate(physics)}
        if all(goal is not None for goal in goals):
            infos["goal"] = concatenate(goals)
        return concatenate(observations), infos

    def step(  # type: ignore[override]
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision in every environment; actions (B, m)."""
        parts = list(zip(*self._call("step", self._batch(actions))))
        rewards, terminations, truncations, physics, costs = (np.concatenate(part) for part in parts[1:])
        return concatenate(parts[0]), rewards, terminations, truncations, {"physics": physics, "cost": costs}

    def peek(self, actions: np.ndarray) -> Observation:
        """Observations (B, K, ...) after each of the actions (B, K, m); the simulators are left as they were.

        Only where `can_peek`.
        """
        return concatenate(self._call("peek", self._batch(actions)))

    def render_first(self) -> np.ndarray | None:
        """A picture of the first environment, (height, width, 3) uint8; None where there is none.

        Raises:
            InputError: if rendering does not work here.
        """
        self._workers[0].send("render_first")
        return self._receive(self._workers[:1])[0]

    def gl_name(self) -> str:
        """Rendering back-end and driver of the workers."""
        return self._call("gl_name")[0]

    def worker_modules(self) -> list[str]:
        """Names of all Python modules loaded in the first worker."""
        return self._call("modules")[0]

    def close_extras(self, **kwargs: Any) -> None:
        for worker in self._workers:
            worker.close()

    def _batch(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        if len(values) != self.num_envs:
            raise InputError(
                f"actions: {self.num_envs} rows needed, one for each environment; found shape {values.shape}"
            )
        return values

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Run a method in every worker on its share of the arguments."""
        if self.closed:
            raise RuntimeError("this VectorEnv is closed")
        for worker, (start, stop) in zip(self._workers, self._bounds):
            worker.send(method, *(argument[start:stop] for argument in arguments))
        return self._receive(self._workers)

    def _receive(self, workers: Sequence["_Worker"]) -> list[Any]:
        replies = [worker.receive() for worker in workers]
        for error, _ in replies:
            if error is None:
                continue
            name, message, trace = error
            raise (
                InputError(message) if name == "InputError" else RuntimeError(f"in an environment's process:\n{trace}")
            )
        return [result for _, result in replies]


class _Worker:
    """A process of envs.worker and the connection to it."""

    def __init__(self, index: int) -> None:
        near, far = socket.socketpair()
        self.connection = Connection(near.detach())
        with far:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "envs.worker", str(far.fileno())],  # -P: not the folder we are in
                pass_fds=[far.fileno()],
                env=_environment(index),
                stdin=subprocess.DEVNULL,
            )

    def send(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(ConnectionError):  # receive reports that the worker has died
            self.connection.send((method, arguments))

    def receive(self) -> tuple[Any, Any]:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            status = self.process.wait(timeout=10)
            return ("death", "", f"process {self.process.pid} died with exit status {status}"), None

    def close(self) -> None:
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _environment(index: int) -> dict[str, str]:
    """The worker's environment: this process's import path, one thread, and its share of the GPUs."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, "PYTHONPATH": path, **threads}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip().isdigit()]
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)].strip()  # envs.gl draws on it
    return environment
