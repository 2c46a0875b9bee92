"""Answer the observations of several robots over a socket: python -m mpdiffuser.serve pipeline=FOLDER

Needs ZeroMQ: pip install 'mpdiffuser[serve]'. A robot is a connection. Requests that wait are answered together, by one
plan of a batch. A request has a JSON header, then the raw numbers of each observation; the answer has a header, then
the action, float32, in the data's units (examples/client.py is a client):

    {"start": true, "seed": 0, "observations": {"frames": {"dtype": "uint8", "shape": [64, 64, 3]}}}
    {"action": [1]}  or  {"error": "observations: the pipeline takes ..."}

`start` begins an episode; its plans depend on the seed alone. A planner that was trained with goals needs `goal` in
this header, like `observations`; its numbers follow. Anyone who reaches the address can ask, so it is this machine's
own by default.
"""

import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from mpdiffuser.config import configured, settings
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import read_observations
from mpdiffuser.sampler import SamplerConfig

LARGEST = 2**26  # bytes of a message
DTYPES = ("uint8", "int32", "int64", "float32", "float64")  # of a request's numbers, in the byte order of this machine
Answer = np.ndarray | InputError


class _Robot:
    """A robot's episode."""

    def __init__(self, history: LatentHistory, seed: int) -> None:
        self.history, self.generator = history, torch.Generator().manual_seed(seed)
        self.goal: torch.Tensor | None = None


class Service:
    """Acts for several robots, each with its own episode. Their plans are drawn together.

    A robot's actions do not depend on the others. Without a finite plan it takes the safe action; `fallbacks` counts
    these.

    Args:
        pipeline: the loaded pipeline.
        config: the sampler settings; None: the pipeline's.
        most: largest number of robots whose episodes are kept.

    Raises:
        InputError: for a pipeline without planner or record, or settings that keep a plan over several decisions.
    """

    def __init__(self, pipeline: MPDiffuserPipeline, config: SamplerConfig | None = None, most: int = 64) -> None:
        config = config or pipeline.sampler_defaults
        if pipeline.planner is None or pipeline.record is None:
            raise InputError("pipeline: holds no planner of MPDiffuser, or does not say what its observations are")
        config.check_single("a server")
        config.check_fit(pipeline.planner.config["horizon"], pipeline.action_bounds, pipeline.stride)
        if most < 1:
            raise InputError(f"robots: must be at least 1, found {most}")
        self.pipeline, self.most, self.fallbacks = pipeline, most, 0
        self.sampler, self.engine = pipeline.sampler(config), config.engine
        self.safe = pipeline.safe_action(config)
        self.robots: OrderedDict[bytes, _Robot] = OrderedDict()
        self._warm_up()

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile what encoding and planning need, since that takes seconds: for one robot, and for several."""
        LatentHistory.of(self.pipeline, self.engine)
        for count in (1, 2):
            latents = torch.zeros(count, self.pipeline.latents.config["dim"], device=self.pipeline.device)
            generators = [torch.Generator().manual_seed(0) for _ in range(count)]
            self.pipeline(latents, self.sampler, generators, goal=latents if self.pipeline.takes_goals else None)

    def start(self, name: bytes, seed: int, goal: Any = None) -> None:
        """Begin an episode of a robot; `goal` is what it is to see, as in the training data.

        Raises:
            InputError: for a goal of another shape, or none if the planner needs one.
        """
        robot = _Robot(LatentHistory.of(self.pipeline, self.engine), seed)
        if self.pipeline.takes_goals:
            if goal is None:
                raise InputError("goal: the planner was trained with goals; give one at the start")
            robot.goal = robot.history.standing(self.read(goal, "goal"))
        self.robots.pop(name, None)
        self.robots[name] = robot
        while len(self.robots) > self.most:
            self.robots.popitem(last=False)

    @torch.inference_mode()
    def act(self, observations: Mapping[bytes, Any]) -> dict[bytes, Answer]:
        """Robot -> observation, as in the training data -> its action (m,) in the data's units, or what is wrong."""
        answers: dict[bytes, Answer] = {}
        latents: dict[bytes, torch.Tensor] = {}
        for name, observation in observations.items():
            try:
                latents[name] = self._latent(name, observation)
            except Exception as error:  # one robot's request must not harm the others
                answers[name] = _as_input_error(error)
        if latents:
            actions = self._actions([self.robots[name] for name in latents], torch.cat(list(latents.values())))
            for name, action in zip(latents, actions):
                self.robots[name].history.record_actions(action[None])
                answers[name] = action
        return answers

    def _latent(self, name: bytes, observation: Any) -> torch.Tensor:
        if name not in self.robots:
            raise InputError(
                f"start: the first request of an episode must have it; of all episodes the last {self.most} are kept"
            )
        seen = self.read(observation, "observations")
        self.robots.move_to_end(name)
        return self.robots[name].history(seen)

    def read(self, observation: Any, where: str) -> dict[str, np.ndarray]:
        """Return an observation by names, with a batch axis, as float32 or uint8.

        Raises:
            InputError: if it does not fit the record, or is not finite.
        """
        assert self.pipeline.record is not None
        seen, _ = read_observations(observation, 1, self.pipeline.record)
        assert isinstance(seen, dict)
        with np.errstate(over="ignore"):
            seen = {name: part.astype(self.pipeline.record.observations[name].dtype) for name, part in seen.items()}
        for name, part in seen.items():
            if not np.isfinite(part).all():
                raise InputError(f"{where}: {name} is not finite")
        return seen

    def _actions(self, robots: Sequence[_Robot], latents: torch.Tensor) -> np.ndarray:
        """Plan for latents (B, d) and return the actions (B, m)."""
        scale = self.pipeline.action_scale
        goals = [robot.goal for robot in robots if robot.goal is not None]
        try:
            generators, goal = [robot.generator for robot in robots], torch.cat(goals) if goals else None
            plan = self.pipeline(latents, self.sampler, generators, goal=goal)
            actions = plan.executed_actions[:, 0].where(plan.sound[:, None], torch.nan).cpu().numpy()
        except Exception as error:  # the robots need an action even if planning fails
            warnings.warn(f"planning failed, falling back: {type(error).__name__}: {error}", stacklevel=2)
            actions = np.full((len(robots), len(self.safe)), np.nan, np.float32)
        sound = np.isfinite(actions).all(1, keepdims=True)
        self.fallbacks += int((~sound).sum())
        return scale.clip(np.where(sound, actions, self.safe).astype(np.float32))


def answered(service: Service, requests: Mapping[bytes, Sequence[bytes]]) -> dict[bytes, list[bytes]]:
    """Robot -> the parts of its request -> the parts of its answer."""
    answers: dict[bytes, Answer] = {}
    observations: dict[bytes, Any] = {}
    for name in requests:
        if name in service.robots:
            service.robots.move_to_end(name)  # it is not silent
    for name, parts in requests.items():
        try:
            header, seen, goal = _read(parts)
            if header.get("start"):
                seed = _seed(header)
                service.read(seen, "observations")  # a wrong one must not end the episode that is running
                service.start(name, seed, goal)
            elif goal is not None:
                raise InputError("goal: is given with start, at the beginning of an episode")
            observations[name] = seen
        except Exception as error:  # one robot's request must not harm the others
            answers[name] = _as_input_error(error)
    answers |= service.act(observations)
    return {name: _written(answer) for name, answer in answers.items()}


def _read(parts: Sequence[bytes]) -> tuple[dict[str, Any], Any, Any]:
    """Return the header, the observations, and the goal or None.

    Raises:
        InputError: for another header, or numbers that do not fit it.
    """
    try:
        header = json.loads(parts[0])
        described = [header["observations"], header.get("goal") or {}]
        named = [item for part in described for item in part.items()]
        specs = [(name, each["dtype"], tuple(each["shape"])) for name, each in named]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"request: not a header ({type(error).__name__}: {error})"[:200]) from error
    if len(parts) != 1 + len(specs):
        raise InputError(f"request: must have the numbers of {len(specs)} observations, found {len(parts) - 1}")
    arrays = []
    for (name, dtype, shape), raw in zip(specs, parts[1:]):
        whole = dtype in DTYPES and len(shape) <= 3 and all(type(n) is int and 0 < n <= LARGEST for n in shape)
        if not whole or len(raw) != np.dtype(dtype).itemsize * math.prod(shape):
            allowed = f"dtypes: {', '.join(DTYPES)}"
            raise InputError(f"request: {name}: {len(raw)} bytes are not {dtype} {shape}; {allowed}"[:300])
        arrays.append((name, np.frombuffer(raw, dtype).reshape(shape).copy()))
    count = len(described[0])
    return header, dict(arrays[:count]), dict(arrays[count:]) or None


def _as_input_error(error: Exception) -> InputError:
    return error if isinstance(error, InputError) else InputError(f"request: {type(error).__name__}: {error}"[:200])


def _seed(header: Mapping[str, Any]) -> int:
    seed = header.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"seed: must be a whole number from 0 on, found {seed!r}"[:200])
    return seed


def _written(answer: Answer) -> list[bytes]:
    if isinstance(answer, InputError):
        return [json.dumps({"error": str(answer)}).encode()]
    return [json.dumps({"action": list(answer.shape)}).encode(), np.ascontiguousarray(answer, np.float32).tobytes()]


def check_address(address: str) -> None:
    """Raise InputError for an address of a form that ZeroMQ does not know, or with a port that does not exist."""
    transport, separator, rest = address.partition("://")
    if not separator or transport not in ("tcp", "ipc", "inproc") or not rest:
        raise InputError(f"address: must be like tcp://127.0.0.1:5555 or ipc:///tmp/policy, found {address}")
    port = rest.rpartition(":")[2]
    if transport == "tcp" and port != "*" and not (port.isdecimal() and int(port) < 2**16):
        raise InputError(f"address: must end in a port, 0..65535, found {address}")


class Server:
    """A service at an address.

    Args:
        service: acts.
        address: of ZeroMQ, such as tcp://127.0.0.1:5555 or ipc:///tmp/policy; port 0: a free one.

    Raises:
        InputError: if ZeroMQ is not installed, or the address cannot be used.
    """

    def __init__(self, service: Service, address: str) -> None:
        check_address(address)
        try:
            import zmq
        except ModuleNotFoundError as error:
            raise InputError("ZeroMQ is not installed: pip install 'mpdiffuser[serve]'") from error
        self.zmq, self.service = zmq, service
        self.socket: Any = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.socket.close()
            raise InputError(f"address: cannot listen at {address}: {error}") from error
        self.address: str = self.socket.getsockopt(zmq.LAST_ENDPOINT).decode()

    def serve_once(self, wait_ms: int = 1000) -> int:
        """Answer the requests that wait, at most one of each robot, and return their number."""
        if not self.socket.poll(wait_ms):
            return 0
        waiting: dict[bytes, tuple[bool, list[bytes]]] = {}
        for _ in range(self.service.most):  # a client that does not wait for answers must not hold up the others
            if not self.socket.poll(0):
                break
            name, *parts = self.socket.recv_multipart()
            framed = parts[:1] == [b""]  # an empty part comes before the request of a REQ socket
            if name in waiting:
                self._send(name, framed, _written(InputError("request: wait for the answer to the last one")))
            else:
                waiting[name] = framed, parts[framed:]
        answers = answered(self.service, {name: parts for name, (_, parts) in waiting.items()})
        for name, answer in answers.items():
            self._send(name, waiting[name][0], answer)
        return len(waiting)

    def _send(self, name: bytes, framed: bool, answer: Sequence[bytes]) -> None:
        self.socket.send_multipart([name, *[b""] * framed, *answer])

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()


@configured("serve")
def main(cfg: DictConfig) -> None:
    """Serve the pipeline `cfg.pipeline` until the process is stopped."""
    if cfg.threads < 1:
        raise InputError(f"threads: must be at least 1, found {cfg.threads}")
    check_address(cfg.address)  # loading and compiling take seconds
    torch.set_num_threads(cfg.threads)
    pipeline = MPDiffuserPipeline.from_pretrained(Path(cfg.pipeline))
    server = Server(Service(pipeline, pipeline.sampler_config(settings(cfg.sampler)), cfg.robots), cfg.address)
    print(f"serving {cfg.pipeline} at {server.address}", flush=True)
    try:
        while True:
            server.serve_once()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
