"""Soaks of control in real time and of the server: what they answer is always allowed, and nothing is lost or leaks.

The runner's observations are spoilt at random, and its plans fail or take long. The server's clients die in the middle
of a request, and send malformed requests.
"""

import json
import threading
import time
import warnings
from typing import Any

import numpy as np
import psutil

from experiments.reliability.soak import EVERY, WARM_UP, drift, observations, opened
from mpdiffuser.realtime import Runner
from mpdiffuser.record import Record
from mpdiffuser.serve import Server, Service

HZ = 50.0  # of a pipeline that does not know its rate
RATE = 20.0  # largest change of an action in a second
ODD, FAR = 0.01, 1e6  # share of the observations that are not finite or far away, and how far
FAILS, SLOW, SLOW_SECONDS = 0.01, 0.01, 0.3  # shares of the plans that fail or take long
RESTARTS = 0.002  # share of the ticks and requests that begin a new episode
DIES, WRONG = 0.002, 0.005  # shares of the requests that a client does not wait for, or that are none
PATIENCE_MS = 60_000  # a request that is not answered by then is lost


def spoilt(record: Record, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random observations without a batch axis; some are not finite or far away."""
    found = {name: part[0] for name, part in observations(record, 1, random).items()}
    return {
        name: part + np.float32(FAR) if part.dtype.kind == "f" and random.random() < ODD else part
        for name, part in found.items()
    }


def soak_runner(minutes: float, folder: str | None = None, every: float = EVERY, seed: int = 0) -> dict[str, Any]:
    """Control by a `Runner` for `minutes`; returns counts, and medians of memory in the first and second half.

    Raises:
        RuntimeError: for an action that is not finite, beyond the bounds, or changes faster than allowed.
    """
    pipeline, record = opened(folder)
    random, plans = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    pipeline.__class__ = _troubled(type(pipeline), plans)
    hz = None if "decision_seconds" in pipeline.config["info"] else HZ
    warnings.simplefilter("ignore")
    totals: dict[str, int] = {"episodes": 0}
    samples: list[tuple[int, int]] = []
    process, began, due = psutil.Process(), time.perf_counter(), 60 * minutes * WARM_UP
    with Runner(pipeline, hz=hz, rate=RATE, seed=seed) as runner:
        last = None
        while (passed := time.perf_counter() - began) < 60 * minutes:
            if last is None or random.random() < RESTARTS:
                _add(totals, runner, last is not None)
                runner.start({name: np.nan_to_num(part) for name, part in spoilt(record, random).items()})
                totals["episodes"] += 1
                last = None
            action = runner.tick(spoilt(record, random))
            _check(action, runner, last)
            last = action
            if passed > due:
                samples.append((process.memory_info().rss, process.num_fds()))
                due = passed + every
            runner.wait()
        _add(totals, runner, True)
    return {"minutes": minutes, **totals, **drift(samples)}


def _troubled(kind: type, random: np.random.Generator) -> type:
    """A class of pipelines some of whose plans fail or take long."""

    def call(self: Any, *arguments: Any, **more: Any) -> Any:
        draw = random.random()
        if draw < FAILS:
            raise RuntimeError("a plan that fails")
        if draw < FAILS + SLOW:
            time.sleep(SLOW_SECONDS)
        return kind.__call__(self, *arguments, **more)  # type: ignore[operator]

    return type(kind.__name__, (kind,), {"__call__": call})


def _check(action: np.ndarray, runner: Runner, last: np.ndarray | None) -> None:
    allowed = np.isfinite(action).all() and (action >= runner.low).all() and (action <= runner.high).all()
    if last is not None and runner.step is not None:
        allowed = allowed and (np.abs(action - last) <= runner.step * 1.0001 + 1e-6).all()
    if not allowed:
        raise RuntimeError(f"action {action} after {last}: beyond the limits")


def _add(totals: dict[str, int], runner: Runner, begun: bool) -> None:
    """Add the counts of an episode."""
    for name, value in runner.summary().items() if begun else ():
        if isinstance(value, int) and name != "plan_age_max":
            totals[name] = totals.get(name, 0) + value


def soak_server(
    minutes: float, folder: str | None = None, clients: int = 8, every: float = EVERY, seed: int = 0
) -> dict[str, Any]:
    """Let clients ask a `Server` for `minutes`; returns counts, and medians of memory in the first and second half.

    Raises:
        RuntimeError: if a request is not answered, or an action is not allowed.
    """
    pipeline, record = opened(folder)
    server = Server(Service(pipeline), "tcp://127.0.0.1:0")
    warnings.simplefilter("ignore")
    stop, totals, faults = threading.Event(), [dict[str, int]() for _ in range(clients)], list[str]()

    def ask(number: int) -> None:
        try:
            _ask(server.address, record, stop, totals[number], faults, [seed, number])
        except Exception as error:  # it would be lost in the thread
            faults.append(f"client {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    samples: list[tuple[int, int]] = []
    process, began, due = psutil.Process(), time.perf_counter(), 60 * minutes * WARM_UP
    for thread in threads:
        thread.start()
    while (passed := time.perf_counter() - began) < 60 * minutes and not faults:
        server.serve_once(100)
        if passed > due:
            samples.append((process.memory_info().rss, process.num_fds()))
            due = passed + every
    stop.set()
    while any(thread.is_alive() for thread in threads):
        server.serve_once(100)
    server.close()
    if faults:
        raise RuntimeError("; ".join(faults))
    counts = {name: sum(each.get(name, 0) for each in totals) for name in ("requests", "answers", "errors", "deaths")}
    return {"minutes": minutes, "clients": clients, **counts, **drift(samples)}


def _ask(
    address: str, record: Record, stop: threading.Event, counts: dict[str, int], faults: list[str], seed: list[int]
) -> None:
    """Ask until `stop`, as one robot; a client that dies is followed by another one."""
    import zmq

    random, begun = np.random.default_rng(seed), False
    socket: Any = None
    count = lambda name: counts.update({name: counts.get(name, 0) + 1})  # noqa: E731
    while not stop.is_set() and not faults:
        if socket is None:
            socket, begun = zmq.Context.instance().socket(zmq.REQ), False
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
            socket.connect(address)
        start = not begun or random.random() < RESTARTS
        seen = spoilt(record, random)
        shapes = {name: {"dtype": str(part.dtype), "shape": part.shape} for name, part in seen.items()}
        header = {"start": start, "seed": int(random.integers(2**31)), "observations": shapes}
        wrong = random.random() < WRONG
        parts = [b"{" if wrong else json.dumps(header).encode(), *map(np.ascontiguousarray, seen.values())]
        socket.send_multipart(parts)
        count("requests")
        if random.random() < DIES:
            count("deaths")
            socket.close()
            socket = None
            continue
        try:
            answer, *action = socket.recv_multipart()
        except zmq.Again:
            faults.append(f"no answer in {PATIENCE_MS} ms")
            break
        count("answers" if action else "errors")
        finite = all(part.dtype.kind != "f" or np.isfinite(part).all() for part in seen.values())
        if bool(action) != (finite and not wrong):
            faults.append(f"a request that is {'finite' if finite else 'not finite'}, {wrong=}, got {answer!r}")
        begun = begun or bool(action)
        if action and not _allowed(record, np.frombuffer(action[0], np.float32)):
            faults.append(f"action {np.frombuffer(action[0], np.float32)}: not allowed")
    if socket is not None:
        socket.close()


def _allowed(record: Record, action: np.ndarray) -> bool:
    return bool(np.isfinite(action).all()) and not record.actions.beyond(action[None]).any()
