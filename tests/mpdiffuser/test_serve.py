"""The server, asked by the client of examples/: the controller's actions, batches, and bad requests."""

import json
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from mpdiffuser import serve
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.serve import Server, Service, answered
from vision.encoder import PixelEncoder

Client: Any = runpy.run_path(str(Path(__file__).parents[2] / "examples/client.py"))["Client"]
CONFIG = SamplerConfig(steps=2, candidates=2, engine="torch")
SEEN = {"frames": Observation(PICTURE, (16, 16, 3)), "joints": Observation(PROPRIOCEPTION, (1,))}
RECORD = Record(SEEN, Actions((-2.0, -1.0), (2.0, 1.0)))


@pytest.fixture
def pipeline(make_pipeline) -> MPDiffuserPipeline:
    """From pictures and joint angles, with a history of 2."""
    encoder = PixelEncoder("conv", 8, 2, 2, 3, 2, proprioception=1).eval()
    return make_pipeline(encoder=encoder, info={"record": RECORD.to_json()})


@pytest.fixture
def server(pipeline: MPDiffuserPipeline) -> Iterator[Server]:
    """A server in a thread."""
    found, over = Server(Service(pipeline, CONFIG), "tcp://127.0.0.1:0"), threading.Event()

    def loop() -> None:
        while not over.is_set():
            found.serve_once(20)

    thread = threading.Thread(target=loop)
    thread.start()
    yield found
    over.set()
    thread.join()
    found.close()


def observations(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        {"frames": random.integers(0, 256, (16, 16, 3), np.uint8), "joints": random.normal(size=1).astype(np.float32)}
        for _ in range(count)
    ]


def by_controller(pipeline: MPDiffuserPipeline, seen: list[dict[str, np.ndarray]], seed: int) -> np.ndarray:
    controller = Controller(pipeline, CONFIG)
    controller.reset([seed])
    return np.stack([controller.act({name: part[None] for name, part in each.items()})[0] for each in seen])


def test_robots_get_the_actions_of_controllers(pipeline: MPDiffuserPipeline, server: Server) -> None:
    clients = [Client(server.address) for _ in range(3)]
    for episode in range(2):
        seeds = [3 * episode + i for i in range(3)]
        seen = [observations(5, seed) for seed in seeds]
        found = [
            [client.act(seen[i][t], start=t == 0, seed=seeds[i]) for i, client in enumerate(clients)] for t in range(5)
        ]
        for i in range(3):
            expected = by_controller(pipeline, seen[i], seeds[i])
            np.testing.assert_allclose([row[i] for row in found], expected, rtol=1e-4, atol=1e-5)


def test_waiting_requests_are_answered_by_one_plan(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    sizes, call = [], MPDiffuserPipeline.__call__

    def counted(self: MPDiffuserPipeline, latents: torch.Tensor, *inputs: Any, **more: Any) -> Any:
        sizes.append(len(latents))
        return call(self, latents, *inputs, **more)

    server = Server(Service(pipeline, CONFIG), "tcp://127.0.0.1:0")
    monkeypatch.setattr(MPDiffuserPipeline, "__call__", counted)
    seen, found = [observations(1, i)[0] for i in range(4)], {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: Client(server.address).act(seen[i], start=True, seed=i)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    waiting = 0
    while waiting < 4:  # until all requests are there
        waiting += server.serve_once(5000)
    for thread in threads:
        thread.join()
    server.close()
    assert sum(sizes) == 4 and len(found) == 4
    for i in range(4):
        np.testing.assert_allclose(found[i], by_controller(pipeline, [seen[i]], i)[0], rtol=1e-4, atol=1e-5)


def request(header: Any, *numbers: bytes) -> list[bytes]:
    return [header if isinstance(header, bytes) else json.dumps(header).encode(), *numbers]


def test_a_batch_changes_nothing_and_forgets_the_silent(pipeline: MPDiffuserPipeline) -> None:
    service, alone = Service(pipeline, CONFIG, most=2), Service(pipeline, CONFIG)
    seen = observations(2)
    for one in (service, alone):
        for i, name in enumerate((b"a", b"b")):
            one.start(name, i)
    together = service.act({b"a": seen[0], b"b": seen[1]})
    for i, name in enumerate((b"a", b"b")):
        np.testing.assert_allclose(together[name], alone.act({name: seen[i]})[name], rtol=1e-4, atol=1e-5)
    service.act({b"a": seen[0]})
    service.start(b"c", 0)  # b was silent the longest
    found = service.act({name: seen[0] for name in (b"a", b"b", b"c")})
    assert isinstance(found[b"b"], InputError) and "start" in str(found[b"b"])
    assert isinstance(found[b"a"], np.ndarray) and isinstance(found[b"c"], np.ndarray)


FRAMES = {"dtype": "uint8", "shape": [16, 16, 3]}
JOINTS = {"dtype": "float32", "shape": [1]}
NUMBERS = bytes(16 * 16 * 3), np.float32(0.5).tobytes()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (request(b"\xff"), "not a header"),
        (request(b"[" * 100_000), "not a header"),
        (request([1]), "not a header"),
        (request({"start": True}), "not a header (KeyError"),
        (request({"observations": {"frames": {"dtype": "nonsense", "shape": [1]}}}, b""), "0 bytes are not nonsense"),
        (request({"observations": {"frames": {"dtype": "O", "shape": [1]}}}, bytes(8)), "8 bytes are not O"),
        *(
            (request({"observations": {"joints": {"dtype": dtype, "shape": [1]}}}, bytes(4)), "dtypes: uint8, int32")
            for dtype in (">f4", "g", ",", "f4,f4", [], {"a": 1}, None)
        ),
        (request({"observations": {"joints": {"dtype": "uint8", "shape": [0, 2**62]}}}, b""), "0 bytes are not uint8"),
        (
            request(
                {"start": True, "observations": {"frames": FRAMES, "joints": {"dtype": "float64", "shape": [1]}}},
                NUMBERS[0],
                np.float64(1e300).tobytes(),
            ),
            "joints is not finite",
        ),
        (
            request(
                {"observations": {"frames": FRAMES, "joints": JOINTS}, "goal": {"frames": FRAMES, "joints": JOINTS}},
                *NUMBERS,
                *NUMBERS,
            ),
            "goal: is given with start",
        ),
        (request({"observations": {"frames": {"dtype": "uint8", "shape": [-1]}}}, b""), "0 bytes are not uint8"),
        (request({"observations": {"frames": {"dtype": "uint8", "shape": [2**70]}}}, b""), "0 bytes are not uint8"),
        (request({"observations": {"frames": FRAMES}}, *NUMBERS), "must have the numbers of 1 observations, found 2"),
        (request({"start": True, "observations": {"frames": FRAMES}}, NUMBERS[0]), "must be a dict of frames uint8"),
        (request({"start": True, "seed": -1, "observations": {}}), "seed: must be a whole number"),
        (request({"observations": {"frames": FRAMES, "joints": JOINTS}}, *NUMBERS), "start: the first request"),
        (
            request(
                {"start": True, "observations": {"frames": FRAMES, "joints": JOINTS}},
                NUMBERS[0],
                np.float32(np.nan).tobytes(),
            ),
            "joints is not finite",
        ),
    ],
)
def test_bad_requests_are_told(pipeline: MPDiffuserPipeline, parts: list[bytes], words: str) -> None:
    service = Service(pipeline, CONFIG)
    good = request({"start": True, "observations": {"frames": FRAMES, "joints": JOINTS}}, *NUMBERS)
    found = answered(service, {b"bad": parts, b"good": good})
    assert words in json.loads(found[b"bad"][0])["error"] and len(found[b"bad"]) == 1
    assert json.loads(found[b"good"][0]) == {"action": [2]} and len(found[b"good"][1]) == 8


def test_a_refused_start_ends_no_episode(pipeline: MPDiffuserPipeline) -> None:
    service = Service(pipeline, CONFIG, most=1)
    service.start(b"a", 0)
    spoilt = [NUMBERS[0], np.float32(np.nan).tobytes()]
    parts = request({"start": True, "observations": {"frames": FRAMES, "joints": JOINTS}}, *spoilt)
    found = answered(service, {b"b": parts})
    assert b"not finite" in found[b"b"][0] and list(service.robots) == [b"a"]


def test_goals_and_failed_plans(make_pipeline, randomize, monkeypatch) -> None:
    record = Record({"observations": Observation(PROPRIOCEPTION, (3,))}, Actions.unit(2))
    sizes = {"latent_dim": 3, "action_dim": 2, "horizon": 8, "width": 8, "multipliers": (1, 2), "embedding": 16}
    planner = randomize(Planner(**sizes, goal_dim=3), 1)
    pipeline = make_pipeline(planner=planner, info={"record": record.to_json()})
    service, seen = Service(pipeline, SamplerConfig(steps=2, safe_action=(0.5, -0.5))), np.zeros(3, np.float32)
    with pytest.raises(InputError, match="goal: the planner was trained with goals"):
        service.start(b"a", 0)
    vector = {"observations": {"dtype": "float32", "shape": [3]}}
    whole = request({"start": True, "observations": vector, "goal": vector}, seen.tobytes(), (seen + 1).tobytes())
    action = np.frombuffer(answered(service, {b"a": whole})[b"a"][1], np.float32)
    controller = Controller(pipeline, SamplerConfig(steps=2))
    controller.reset([0])
    np.testing.assert_allclose(action, controller.act(seen[None], goal=seen[None] + 1)[0], rtol=1e-3, atol=1e-5)

    def fail(*inputs: Any, **more: Any) -> None:
        raise RuntimeError("no plan")

    monkeypatch.setattr(MPDiffuserPipeline, "__call__", fail)
    with pytest.warns(UserWarning, match="planning failed"):
        np.testing.assert_allclose(service.act({b"a": {"observations": seen}})[b"a"], [0.5, -0.5])
    assert service.fallbacks == 1


def test_a_client_that_dies_or_does_not_wait(pipeline: MPDiffuserPipeline, server: Server) -> None:
    hasty = zmq.Context.instance().socket(zmq.DEALER)
    hasty.connect(server.address)
    good = request({"start": True, "observations": {"frames": FRAMES, "joints": JOINTS}}, *NUMBERS)
    for _ in range(3):
        hasty.send_multipart(good)
    answers = [json.loads(hasty.recv_multipart()[0]) for _ in range(3)]
    assert {"action": [2]} in answers
    hasty.send_multipart(good)
    hasty.close(linger=0)  # without the answer
    client = Client(server.address)
    assert client.act(observations(1)[0], start=True).shape == (2,)
    with pytest.raises(RuntimeError, match="the pipeline takes frames uint8"):
        client.act({"frames": np.zeros((8, 8, 3), np.uint8), "joints": np.zeros(1, np.float32)})
    assert client.act(observations(1)[0]).shape == (2,)  # it goes on


def test_what_is_refused(pipeline: MPDiffuserPipeline, make_pipeline, server: Server, monkeypatch, capsys) -> None:
    for name, value in (("chunk", 2), ("warm_start", 1), ("delay", 1), ("deadline_ms", 5.0)):
        with pytest.raises(InputError, match=rf"sampler.{name}: must be . in a server, found {value}"):
            Service(pipeline, SamplerConfig(**{name: value}))
    with pytest.raises(InputError, match="does not say what its observations are"):
        Service(make_pipeline())
    with pytest.raises(InputError, match="robots: must be at least 1, found 0"):
        Service(pipeline, CONFIG, 0)
    for address, words in (
        ("tcp://nowhere", "address: must end in a port, 0..65535, found tcp://nowhere"),
        ("tcp://127.0.0.1:99999", "address: must end in a port, 0..65535, found tcp://127.0.0.1:99999"),
        ("foo", "address: must be like tcp://127.0.0.1:5555 or ipc:///tmp/policy, found foo"),
        ("ipc:///no/such/folder/policy", "address: cannot listen at ipc:///no/such/folder/policy: No such file"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            Server(server.service, address)
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[serve\]'"):
        Server(server.service, "tcp://127.0.0.1:0")


def test_the_command(pipeline: MPDiffuserPipeline, tmp_path: Path, monkeypatch, capsys) -> None:
    pipeline.save_pretrained(tmp_path / "pipeline")
    rounds = iter([1, 0])

    def serve_once(self: Server, wait_ms: int = 1000) -> int:
        if next(rounds):
            return 0
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_once", serve_once)
    monkeypatch.setattr(sys, "argv", ["serve", f"pipeline={tmp_path / 'pipeline'}", "address=tcp://127.0.0.1:0"])
    serve.main()
    assert f"serving {tmp_path / 'pipeline'} at tcp://127.0.0.1:" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["serve", "pipeline=nowhere", "address=tcp://127.0.0.1:99999"])
    with pytest.raises(SystemExit):
        serve.main()
    assert "address: must end in a port, 0..65535, found tcp://127.0.0.1:99999" in capsys.readouterr().err
