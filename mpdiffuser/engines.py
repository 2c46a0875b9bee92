"""Engines: who computes the networks while plans are drawn. All give the numbers of eager torch, up to rounding.

torch           the model as it is
compile         torch.compile, with a C++ compiler: a minute for each model, later runs reuse its cache
onnx            ONNX Runtime: pip install 'mpdiffuser[onnx]'
openvino        OpenVINO, float32: pip install 'mpdiffuser[openvino]'
openvino_bf16   OpenVINO, bfloat16 where the CPU computes with it, else float32
auto            on a CPU the first of openvino and onnx that is installed, else torch

The order of auto is fixed (measured by python -m benchmarks.planning): the outcome of a race would depend on what else
the machine does, and with it the last digits of a result. Networks reach both libraries as ONNX graphs: OpenVINO's own
converter of torch modules takes ten times as long, for graphs that are not faster, and reports its use to its makers.
"""

import importlib.util
import io
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch

from mpdiffuser.errors import InputError

PACKAGES = {"onnx": ("onnxruntime", "onnx")} | dict.fromkeys(("openvino", "openvino_bf16"), ("openvino", "onnx"))
ENGINES = ("auto", "torch", "compile", *PACKAGES)
FASTEST = ("openvino", "onnx")

Run = Callable[[Sequence[np.ndarray]], np.ndarray]


def resolved(engine: str, device: torch.device) -> str:
    """What "auto" stands for here; any other engine is itself."""
    if engine != "auto":
        return engine
    return next((name for name in FASTEST if device.type == "cpu" and not _missing(name)), "torch")


def compiled(module: Any, engine: str, example: Sequence[torch.Tensor]) -> Any:
    """The module, or what computes the same: called with the same tensors, any batch, and with its `config`.

    Args:
        engine: not "auto", see `resolved`.
        example: inputs of the module, each (2, ...): a batch of 1 would be traced as what never grows.

    Raises:
        InputError: for an unknown engine, one that is not installed, or one of the CPU's for a module elsewhere.
    """
    if engine not in ENGINES[1:]:
        raise InputError(f"engine: must be one of {', '.join(ENGINES)}, found {engine!r}")
    if engine == "torch":
        return module
    if engine == "compile":
        return torch.compile(module, dynamic=True)
    _check(module, engine)
    run = _onnx(graph(module, example)) if engine == "onnx" else _openvino(graph(module, example), engine)
    return Compiled(run, getattr(module, "config", None))


class Compiled:
    """A network that another engine computes on the CPU; one call at a time.

    Args:
        run: arrays in, array out.
        config: of the network.
    """

    def __init__(self, run: Run, config: Any) -> None:
        self._run, self.config, self._lock = run, config, threading.Lock()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with self._lock:
            return torch.from_numpy(self._run([part.contiguous().numpy() for part in inputs]))


def _missing(engine: str) -> list[str]:
    return [package for package in PACKAGES[engine] if importlib.util.find_spec(package) is None]


def _check(module: torch.nn.Module, engine: str) -> None:
    if _missing(engine):
        extra = engine.partition("_")[0]
        raise InputError(f"engine={engine}: {_missing(engine)[0]} is not installed: pip install 'mpdiffuser[{extra}]'")
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise InputError(f"engine={engine}: computes on the CPU, found the model on {device}; use torch or compile")


class _Positional(torch.nn.Module):
    """Tracers want forward(*inputs), without diffusers' keyword machinery."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)


def graph(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> bytes:
    """The network as an ONNX graph for any batch, inputs input_0, input_1, ..., output `output`; in eval mode.

    Args:
        example: as in `compiled`.

    Raises:
        InputError: for a network of which there can be no such graph.
    """
    names, file = [f"input_{i}" for i in range(len(example))], io.BytesIO()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch on this exporter; the newer one needs a package more
        try:
            torch.onnx.export(
                _Positional(module.eval()),
                tuple(example),
                file,  # type: ignore[arg-type]
                input_names=names,
                output_names=["output"],
                dynamic_axes={name: {0: "batch"} for name in (*names, "output")},
                dynamo=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = str(error).partition("[Caused by")[0].partition("\n")[0]
            raise InputError(f"engine: ONNX cannot express this network ({reason}); use torch or compile") from error
    return file.getvalue()


def _onnx(graph: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs)))[0]


def _openvino(graph: bytes, engine: str) -> Run:
    import openvino

    core, precision = openvino.Core(), "bf16" if engine == "openvino_bf16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", settings).create_infer_request()

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        request.infer(inputs, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run
