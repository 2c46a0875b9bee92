"""The networks of a pipeline are compiled once, and again when a model is replaced."""

from typing import Any

import pytest
import torch

from mpdiffuser import engines, networks
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.record import PICTURE, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import PixelEncoder

D, M, H = 3, 2, 8


def test_networks_that_engines_compute(make_pipeline) -> None:
    assert set(make_pipeline().networks.examples()) == {"planner", "dynamics"}
    assert set(make_pipeline(dynamics=None).networks.examples()) == {"planner"}
    pipeline = make_pipeline()
    for name, (model, example) in pipeline.networks.examples().items():
        assert model is getattr(pipeline, name) and torch.isfinite(model(*example)).all()


def test_a_network_is_compiled_once(make_pipeline, randomize, monkeypatch) -> None:
    made: list[Any] = []

    def counted(model: Any, *arguments: Any) -> Any:
        made.append(model)
        return engines.compiled(model, *arguments)

    monkeypatch.setattr(networks, "compiled", counted)
    pipeline = make_pipeline()
    sampler = pipeline.sampler(SamplerConfig(engine="onnx", steps=2, composition="planner"))
    latents, seeds = torch.zeros(2, D), [torch.Generator().manual_seed(i) for i in range(2)]
    for _ in range(2):
        pipeline(latents, sampler, seeds)
    pipeline(latents, pipeline.sampler(SamplerConfig(engine="onnx", steps=3, composition="planner")), seeds)
    assert made == [pipeline.planner, pipeline.dynamics]
    pipeline.planner = randomize(Planner(D, M, H, width=8, multipliers=(1, 2), embedding=16), 4)
    pipeline(latents, pipeline.sampler(SamplerConfig(engine="onnx", steps=2, composition="planner")), seeds)
    assert made[2:] == [pipeline.planner]
    randomize(pipeline.planner, 5)  # in place
    plan = pipeline(latents, pipeline.sampler(SamplerConfig(engine="onnx", steps=2, composition="planner")), seeds)
    assert made[3:] == [pipeline.planner] and plan.sound.all()


def test_a_missing_engine_is_told_before_any_plan(make_pipeline, monkeypatch) -> None:
    monkeypatch.setattr(engines, "_missing", lambda engine: ["onnxruntime"])
    with pytest.raises(InputError, match=r"engine=onnx: onnxruntime is not installed"):
        make_pipeline().sampler(SamplerConfig(engine="onnx"))


def test_frames_are_seen_through_the_engine(make_pipeline, randomize, odd_network, monkeypatch) -> None:
    """In float32, also where the feature map, 3 x 3, does not divide into the cells; but not by one that cannot."""
    encoder = randomize(PixelEncoder("conv", 8, 2, 2, D, M))
    info = {"record": Record({"frames": Observation(PICTURE, (20, 20, 3))}, Actions.unit(M)).to_json()}
    pipeline = make_pipeline(D, M, H, encoder=encoder, info=info)
    frames = torch.randint(256, (5, 20, 20, 3), dtype=torch.uint8)
    for engine in ("openvino", "onnx", "openvino_bf16"):
        encode = pipeline.networks.frame_encoder(engine)
        assert encode != encoder.features
        with torch.inference_mode():
            torch.testing.assert_close(encode(frames), encoder.features(frames), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(encoder, "frame_net", odd_network)
    assert pipeline.networks.frame_encoder("onnx") == encoder.features


def test_cameras_of_different_size_are_seen_through_the_engine(make_pipeline, randomize) -> None:
    encoder = randomize(PixelEncoder("conv", 8, 2, 2, D, M, cameras=3))
    shapes = {"front": (20, 24, 3), "hand": (16, 16, 3), "side": (20, 24, 3)}
    seen = {name: Observation(PICTURE, shape) for name, shape in shapes.items()}
    pipeline = make_pipeline(D, M, H, encoder=encoder, info={"record": Record(seen, Actions.unit(M)).to_json()})
    assert [name for name in pipeline.networks.examples() if "frame" in name] == ["frame_net_16x16", "frame_net_20x24"]
    encode = pipeline.networks.frame_encoder("onnx")
    for shape in shapes.values():
        frames = torch.randint(256, (3, *shape), dtype=torch.uint8)
        with torch.inference_mode():
            torch.testing.assert_close(encode(frames), encoder.features(frames), rtol=1e-4, atol=1e-4)
