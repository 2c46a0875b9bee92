"""Engines: who computes a denoiser's forward pass while plans are drawn.

torch       the model as it is
openvino    compiled by OpenVINO for this CPU, float32: pip install 'mpdiffuser[openvino]'
"""

import threading
import warnings
from typing import Any

import torch

from mpdiffuser.errors import InputError

ENGINES = ("torch", "openvino")


def compiled(model: Any, engine: str) -> Any:
    """The model, or what computes the same: called with the same tensors, and with the model's `config`.

    Raises:
        InputError: for an unknown engine, or one that is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"engine: must be one of {', '.join(ENGINES)}, found {engine!r}")
    return model if engine == "torch" or model is None else OpenVINODenoiser(model)


class OpenVINODenoiser:
    """A denoiser compiled for the CPU, with as many threads as torch has; one call at a time.

    Args:
        model: a `Planner` or a `Dynamics`.

    Raises:
        InputError: if OpenVINO is not installed.
    """

    def __init__(self, model: Any) -> None:
        try:
            import openvino
        except ImportError as error:
            raise InputError("engine=openvino: not installed: pip install 'mpdiffuser[openvino]'") from error
        self.config = model.config
        c, rows = model.config, 2
        x = torch.zeros(rows, c["horizon"], c["latent_dim"] + c["action_dim"])
        inputs: tuple[torch.Tensor, ...] = (x, torch.zeros(rows, dtype=torch.long))
        if "condition_dim" in c:
            inputs = (*inputs, torch.zeros(rows, c["condition_dim"]), torch.ones(rows))
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on its own tracing
            graph = openvino.convert_model(
                _Positional(model.to("cpu").eval()),
                example_input=inputs,
                input=[(openvino.PartialShape([-1, *part.shape[1:]]), _kind(openvino, part)) for part in inputs],
            )
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with self._lock:
            self._request.infer([part.contiguous().numpy() for part in inputs], share_inputs=True)
            return torch.from_numpy(self._request.get_output_tensor(0).data.copy())


class _Positional(torch.nn.Module):
    """OpenVINO traces forward(*inputs) without diffusers' keyword machinery."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x, levels, condition=None, keep=None):  # type: ignore[no-untyped-def]
        return self.model(x, levels) if condition is None else self.model(x, levels, condition, keep)


def _kind(openvino: Any, tensor: torch.Tensor) -> Any:
    return openvino.Type.i64 if tensor.dtype == torch.long else openvino.Type.f32
