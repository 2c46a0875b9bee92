"""Exported graphs give what the networks give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.export import export
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, Actions, Observation, Record
from vision.encoder import PixelEncoder


@pytest.fixture
def folder(make_pipeline, tmp_path: Path) -> Path:
    encoder = PixelEncoder("conv", 8, 2, 2, 3, 2)
    info = {"record": Record({"frames": Observation(PICTURE, (16, 16, 3))}, Actions.unit(2)).to_json()}
    made = make_pipeline(encoder=encoder.eval(), info=info)
    made.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.mark.parametrize("engine", [pytest.param("openvino", marks=pytest.mark.slow), "onnx"])
def test_graphs_work_outside(folder: Path, engine: str) -> None:
    output = folder.with_name("graphs")
    for _ in range(2):  # a second one takes the place of the first
        files = export(folder, engine, output)
    pipeline = MPDiffuserPipeline.from_pretrained(folder)  # which is as it was
    assert [file.stem for file in files] == ["planner", "dynamics", "frame_net"]
    for file in files:
        model, example = pipeline.networks()[file.stem]
        inputs = [part[:1].repeat(5, *[1] * (part.dim() - 1)) for part in example]
        inputs[0] = torch.linspace(0, 200, inputs[0].numel()).view(inputs[0].shape).remainder(3).to(inputs[0].dtype)
        with torch.inference_mode():
            expected = model(*inputs).numpy()
        found = run(file, [part.numpy() for part in inputs])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def run(file: Path, inputs: list[np.ndarray]) -> np.ndarray:
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        assert names[0] in ("x", "frames")
        return session.run(None, dict(zip(names, inputs)))[0]
    import openvino

    return openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]


def test_bad_input_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine: must be one of openvino, onnx, found 'torch'"):
        export(folder, "torch", tmp_path / "graphs")
    with pytest.raises(InputError, match=r"output_dir: .* lies in the pipeline's folder"):
        export(folder, "onnx", folder / "graphs")
    with pytest.raises(InputError, match=r"output_dir: .* holds something else"):
        export(folder, "onnx", tmp_path)
    with pytest.raises(InputError, match="not a pipeline folder"):
        export(tmp_path / "nothing", "onnx", tmp_path / "graphs")
