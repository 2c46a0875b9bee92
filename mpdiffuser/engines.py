"""Engines compute the networks while the sampler runs. All engines return the results of eager torch, up to rounding.

torch           eager torch
compile         torch.compile, which needs a C++ compiler: a minute for each model, later runs reuse its cache
onnx            ONNX Runtime: pip install 'mpdiffuser[onnx]'
openvino        OpenVINO, float32: pip install 'mpdiffuser[openvino]'
openvino_bf16   OpenVINO, bfloat16 if the CPU supports it, else float32
auto            on a CPU the first of openvino and onnx that is installed, else torch

The order of auto is fixed (python -m benchmarks.planning measures the engines). A measurement at run time would depend
on the machine's load, and then the last digits of a result would depend on it too. Both libraries read ONNX graphs.
OpenVINO also has a converter for torch modules, which this module does not use: it is ten times slower, its graphs are
not faster, and it sends usage data to the makers of OpenVINO.
"""

import importlib.metadata
import importlib.util
import inspect
import io
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch

from mpdiffuser.errors import InputError

PACKAGES = {"onnx": ("onnxruntime", "onnx")} | dict.fromkeys(("openvino", "openvino_bf16"), ("openvino", "onnx"))
ENGINES = ("auto", "torch", "compile", *PACKAGES)
FASTEST = ("openvino", "onnx")
OPSET = 18  # of ONNX

EXPORTING = threading.Lock()  # torch's exporter, and what it redirects, belong to the whole process

Run = Callable[..., torch.Tensor]


def resolved(engine: str, device: torch.device) -> str:
    """Replace "auto" by the engine that it means on this machine. Other engines are returned unchanged."""
    if engine != "auto":
        return engine
    return next((name for name in FASTEST if device.type == "cpu" and not _missing(name)), "torch")


def compiled(module: torch.nn.Module, engine: str, example: Sequence[torch.Tensor], method: str = "forward") -> Run:
    """Compile a method of a module for an engine. The result is a function of the same tensors, for any batch size.

    Args:
        module: the network.
        engine: one of `ENGINES` except "auto" (see `resolved`).
        example: inputs of the method, each (2, ...); a batch of 1 would be traced as a constant size.
        method: name of the method.

    Raises:
        InputError: for an unknown engine, one that is not installed, or a CPU engine for a module on another device.
    """
    if engine not in ENGINES[1:]:
        raise InputError(f"engine: must be one of {', '.join(ENGINES)}, found {engine!r}")
    if engine == "torch":
        return module if method == "forward" else getattr(module, method)
    if engine == "compile":
        return torch.compile(getattr(module, method), dynamic=True)
    require(engine)
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise InputError(f"engine={engine}: computes on the CPU, found the model on {device}; use torch or compile")
    run = loaded(
        graph(module, dict(zip(inspect.signature(getattr(module, method)).parameters, example)), method=method), engine
    )
    return lambda *inputs: run(*inputs)[0]


def loaded(graph: bytes, engine: str) -> Callable[..., list[torch.Tensor]]:
    """Load an ONNX graph into an engine. The result is a function of the graph's inputs that returns its outputs."""
    run, lock = _onnx(graph) if engine == "onnx" else _openvino(graph, engine), threading.Lock()

    def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
        with lock:
            return [torch.from_numpy(part) for part in run([part.contiguous().numpy() for part in inputs])]

    return call


class Prepared:
    """A denoiser that caches the modulation for all levels of one plan.

    It computes the modulation of all levels at once, and only once for rows with the same present latent and target.

    Args:
        model: a `Planner` or a `Dynamics`.
        levels: all noise levels that the sampler visits.
        denoise: the model's `denoise`, compiled for an engine; None: the model's forward pass in eager torch.

    Attributes:
        repeats: n if each n rows in turn have the same present latent and target; None: such rows are searched for,
            which a graph cannot do.
    """

    repeats: int | None = None

    def __init__(self, model: Any, levels: Sequence[int], denoise: Run | None = None) -> None:
        self.model, self.levels, self.denoise, self.config = model, list(levels), denoise, model.config
        self.to_clean = model.to_clean
        self._last = -1  # level and other inputs of the last call
        self._known: tuple[torch.Tensor, ...] = ()
        self._modulations: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, levels: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Call the model. All entries of `levels` (B,) must be equal to one level of the constructor's list."""
        level, known = int(levels[0]), (x[:, 0, : self.config["latent_dim"]], *rest)
        if level >= self._last or not all(map(torch.equal, known, self._known)):
            self._known = tuple(part.clone() for part in known)
            self._modulations = self._prepare(known)
        self._last, modulation = level, self._modulations[level]
        return (
            self.model(x, levels, *rest, modulation=modulation) if self.denoise is None else self.denoise(x, modulation)
        )

    def _prepare(self, known: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Compute the modulation (B, F) of each level."""
        flat = torch.cat([part.reshape(len(part), -1) for part in known], -1)
        if self.repeats:
            rows = flat[:: self.repeats]
        else:
            rows, index = torch.unique(flat, dim=0, return_inverse=True)
        parts = rows.repeat(len(self.levels), 1).split([part[0].numel() for part in known], -1)
        levels = torch.tensor(self.levels, device=rows.device).repeat_interleave(len(rows))
        known_rows = [part.view(-1, *whole.shape[1:]) for part, whole in zip(parts, known)]
        modulation = self.model.modulation(levels, *known_rows).view(len(self.levels), len(rows), -1)
        whole = modulation.repeat_interleave(self.repeats, 1) if self.repeats else modulation[:, index]
        return dict(zip(self.levels, whole.unbind()))


def _missing(engine: str) -> list[str]:
    return [package for package in PACKAGES[engine] if importlib.util.find_spec(package) is None]


def libraries(engine: str) -> dict[str, str]:
    """Return the versions of an engine's packages, without torch."""
    return {package: importlib.metadata.version(package) for package in PACKAGES.get(engine, ())}


def require(engine: str) -> None:
    """Raise InputError with the pip command unless the engine's packages are installed."""
    if _missing(engine):
        extra = engine.partition("_")[0]
        raise InputError(f"engine={engine}: {_missing(engine)[0]} is not installed: pip install 'mpdiffuser[{extra}]'")


class _Positional(torch.nn.Module):
    """Wraps a method as forward(*inputs), since tracers do not support diffusers' keyword arguments."""

    def __init__(self, module: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method
        self.eval()  # the exporter sets every submodule to the mode of this module

    def forward(self, *inputs: torch.Tensor) -> Any:
        return getattr(self.module, self.method)(*inputs)


def graph(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str] = ("output",),
    method: str = "forward",
    any_batch: bool = True,
) -> bytes:
    """Export a method of a module, in eval mode, as an ONNX graph.

    Args:
        module, method: as in `compiled`.
        inputs: name -> example of each argument of the method, in order.
        outputs: names of the results.
        any_batch: whether the first dimension of inputs and outputs is free.

    Raises:
        InputError: for a network with operations that ONNX does not support.
    """
    file = io.BytesIO()
    torch.onnx.register_custom_op_symbolic("aten::atanh", lambda g, x: g.op("Atanh", x), OPSET)  # torch has none
    quiet = warnings.catch_warnings(), redirect_stdout(io.StringIO())
    with EXPORTING, torch.inference_mode(False), torch.no_grad(), quiet[0], quiet[1]:
        warnings.simplefilter("ignore")  # torch warns that this exporter is old; the new one needs another package
        try:
            torch.onnx.export(
                _Positional(module, method),
                tuple(inputs.values()),
                file,  # type: ignore[arg-type]
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)} if any_batch else None,
                opset_version=OPSET,
                dynamo=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = str(error).partition("[Caused by")[0].partition("\n")[0]
            raise InputError(f"engine: ONNX cannot express this network ({reason}); use torch or compile") from error
    return file.getvalue()


def _onnx(graph: bytes) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs)))


def _openvino(graph: bytes, engine: str) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    import openvino

    core, precision = openvino.Core(), "bf16" if engine == "openvino_bf16" else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,  # pinning would put every process on the same first cores
    }
    request = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", settings).create_infer_request()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        request.infer(inputs, share_inputs=True)
        return [tensor.data.copy() for tensor in request.output_tensors]

    return run
