"""Engines compute what eager torch computes.

Stated tolerance: 1e-4 of the output's scale for float32 engines, 2e-2 for bfloat16, in one pass of a network; plans,
after several levels, in `test_pipeline`.
"""

import importlib.metadata
import importlib.util
from functools import partial

import pytest
import torch

from mpdiffuser import engines
from mpdiffuser.engines import Prepared, compiled, libraries, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from vision.backbones import Backbone

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=16, multipliers=(1, 2), embedding=16)
TOLERANCE = {"openvino": 1e-4, "onnx": 1e-4, "openvino_bf16": 2e-2}
CPU = torch.device("cpu")


def network(randomize, kind: str) -> torch.nn.Module:
    if kind == "frame_net":
        return randomize(Backbone("conv", 8, 2))
    return randomize(Planner(**SIZES, condition_dim=2) if kind == "planner" else Dynamics(**SIZES))


def inputs(batch: int, kind: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    if kind == "frame_net":
        return (torch.randint(256, (batch, 16, 16, 3), generator=generator, dtype=torch.uint8),)
    x = torch.randn(batch, H, D + M, generator=generator)
    levels = torch.randint(100, (batch,), generator=generator)
    return (x, levels, x[:, 0, :2], (levels % 2).float()) if kind == "planner" else (x, levels)


@pytest.mark.parametrize("kind", ["planner", "dynamics", "frame_net"])
@pytest.mark.parametrize("engine", TOLERANCE)
def test_engines_agree_with_torch(randomize, engine: str, kind: str) -> None:
    """For every batch size, and what it gave before is not overwritten by the next call; the model stays as it was."""
    model = network(randomize, kind)
    fast, found, expected = compiled(model, engine, inputs(2, kind)), [], []
    assert not any(part.training for part in model.modules())
    for batch in (1, 3, 64):
        with torch.inference_mode():
            found.append(fast(*inputs(batch, kind)))
            expected.append(model(*inputs(batch, kind)))
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= TOLERANCE[engine] * b.abs().max()


def test_openvino_leaves_the_choice_of_a_core_to_the_system(randomize, monkeypatch) -> None:
    """Bound to the first core, as it is by itself, it would share that with every other process that plans."""
    import openvino

    model, chosen = network(randomize, "dynamics"), []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *args: chosen.append(compile_model(*args)) or chosen[0])
    compiled(model, "openvino", inputs(2, "dynamics"))(*inputs(2, "dynamics"))
    assert not chosen[0].get_property("ENABLE_CPU_PINNING")


@pytest.mark.slow
def test_compile_agrees_with_torch(randomize, monkeypatch) -> None:
    """The graph that torch takes down; its code generator would take a minute and is torch's affair."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = network(randomize, "dynamics")
    fast = compiled(model, "compile", inputs(2, "dynamics"))
    with torch.inference_mode():
        for batch in (3, 64):
            torch.testing.assert_close(
                fast(*inputs(batch, "dynamics")), model(*inputs(batch, "dynamics")), rtol=1e-4, atol=1e-5
            )
    assert compiled(model, "torch", ()) is model
    assert model._compiled_call_impl is None  # it stays as it was


def test_auto_is_the_fastest_that_is_installed(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(engines, "FASTEST", ("openvino", "onnx"))
    assert resolved("auto", CPU) == "openvino"
    assert resolved("auto", torch.device("cuda")) == "torch"
    assert resolved("compile", CPU) == "compile"
    for gone, found in (
        (["openvino"], "onnx"),
        (["openvino", "onnx"], "torch"),
        (["onnx"], "torch"),
    ):
        monkeypatch.setattr(
            engines.importlib.util, "find_spec", lambda name, gone=gone: None if name in gone else find(name)
        )
        assert resolved("auto", CPU) == found


def test_engines_that_cannot_be(monkeypatch) -> None:
    model = Dynamics(**SIZES)
    with pytest.raises(InputError, match="engine: must be one of auto, torch, compile, onnx, openvino, openvino_bf16"):
        compiled(model, "tensorrt", model.example())
    with pytest.raises(InputError, match="engine=onnx: computes on the CPU, found the model on meta"):
        compiled(model.to("meta"), "onnx", model.example())
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    for engine in ("openvino", "openvino_bf16"):
        with pytest.raises(InputError, match=rf"engine={engine}: openvino is not installed: .*mpdiffuser\[openvino\]'"):
            compiled(model, engine, model.example())


def test_networks_that_no_graph_can_express(odd_network, capfd) -> None:
    with pytest.raises(InputError, match="engine: ONNX cannot express this network"):
        compiled(odd_network, "onnx", (torch.zeros(2, 3),))
    assert len(capfd.readouterr().out) < 1000  # the exporter prints the whole network


@pytest.mark.parametrize("kind", ["planner", "dynamics"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_prepared_denoisers_give_what_the_model_gives(randomize, engine: str, kind: str) -> None:
    """Whenever the present, the target, the batch or the weights change; what rows share is computed once a plan, for
    all of them and all levels."""
    model = network(randomize, kind)
    x, levels, *told = model.example()
    modulation = model.modulation(levels, x[:, 0, :D], *told).detach()
    denoise = None if engine == "torch" else compiled(model, engine, (x, modulation), "denoise")
    prepared, rows = Prepared(model, [90, 40, 3], denoise), []
    model.level.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    for batch, distinct, seed in ((4, 2, 0), (4, 2, 0), (4, 2, 1), (6, 3, 1)):
        x, _, *told = (part[:distinct].repeat_interleave(batch // distinct, 0) for part in inputs(batch + seed, kind))
        with torch.no_grad():
            model.level.mlp[0].weight *= 0.9
        for level in (90, 40, 3):
            x = x.clone()
            x[:, 1:] += level  # another trajectory, the same present
            rows.clear()
            with torch.inference_mode():
                found = prepared(x, torch.full((batch,), level), *told)
                assert rows == ([3 * distinct] if level == 90 else [])
                expected = model(x, torch.full((batch,), level), *told)
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_versions_of_what_computes() -> None:
    assert libraries("torch") == {}
    assert libraries("openvino")["openvino"] == importlib.metadata.version("openvino")
    assert set(libraries("onnx")) == {"onnxruntime", "onnx"}
