"""Run an exported policy with ONNX Runtime or OpenVINO; torch is not needed: python run_policy.py FOLDER

FOLDER is what `mpdiffuser export` wrote. Needs numpy, and onnxruntime or openvino. Here the robot stands still: the
program feeds zeros, and prints the actions and the time of each.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class Policy:
    """An exported policy.

    Args:
        folder: of policy.json and the graph.
        seed: of the noise.
        threads: of the runtime.
    """

    def __init__(self, folder: Path, seed: int = 0, threads: int = 1) -> None:
        self.facts = json.loads((folder / "policy.json").read_text())
        self.random = np.random.default_rng(seed)
        self.run = (_openvino if self.facts["engine"] == "openvino" else _onnx)(folder, threads)
        self.reset()

    def reset(self) -> None:
        """Start a new episode."""
        self.state = {
            name: np.zeros(each["shape"], each["dtype"])
            for name, each in self.facts["inputs"].items()
            if name in ("start", "features", "actions")
        }
        if "start" in self.state:
            self.state["start"][:] = True

    def act(self, observations: Mapping[str, np.ndarray], noise: np.ndarray | None = None) -> Arrays:
        """Observations name -> (B, ...) -> all outputs of the graph; `action` (B, m) is the one to execute."""
        inputs = self.facts["inputs"]
        expected = {name for name in inputs if name not in ("noise", *self.state)}
        if set(observations) != expected:
            raise ValueError(f"observations: must be {sorted(expected)}, found {sorted(observations)}")
        observations = {name: np.asarray(part, inputs[name]["dtype"]) for name, part in observations.items()}
        if noise is None:
            noise = self.random.standard_normal(inputs["noise"]["shape"], np.float32)
        found = dict(zip(self.facts["outputs"], self.run({**observations, **self.state, "noise": noise})))
        if self.state:
            self.state = {name: found[f"next_{name}"] for name in ("features", "actions")}
            self.state["start"] = np.zeros(self.facts["inputs"]["start"]["shape"], bool)
        return found


def _onnx(folder: Path, threads: int) -> Callable[[Arrays], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _openvino(folder: Path, threads: int) -> Callable[[Arrays], list[np.ndarray]]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / "policy.xml", "CPU", settings)
    return lambda inputs: [part.copy() for part in model(inputs).to_tuple()]


def main() -> None:
    policy = Policy(Path(sys.argv[1]))
    inputs = policy.facts["inputs"]
    names = [name for name in inputs if name not in ("start", "features", "actions", "noise")]
    zeros = {name: np.zeros(inputs[name]["shape"], inputs[name]["dtype"]) for name in names}
    for _ in range(10):
        began = time.perf_counter()
        action = policy.act(zeros)["action"]
        print(f"{1e3 * (time.perf_counter() - began):.2f} ms: {action[0]}")


if __name__ == "__main__":
    main()
