"""The exported policy acts as the controller does, in Python without torch and in C++."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.export import export, main
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import PixelEncoder

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORD = Record(
    {"frames": Observation(PICTURE, (16, 16, 3)), "joints": Observation(PROPRIOCEPTION, (1,))},
    Actions((-2.0, -1.0), (3.0, 1.0)),
)
SETTINGS = SamplerConfig(steps=3, guidance=2.0, solver="ddpm", candidates=3)
DECISIONS = 4


@pytest.fixture
def folder(make_pipeline, tmp_path: Path) -> Path:
    """A pipeline from pixels and joint angles, whose latents need 3 frames and the actions between them."""
    encoder = PixelEncoder("conv", 8, 2, 2, 3, 3, proprioception=1).eval()
    make_pipeline(encoder=encoder, info={"record": RECORD.to_json()}).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def decisions(pipeline: MPDiffuserPipeline, draws: int) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], Any]:
    """Observations and noise of some decisions, the controller's actions, and its last plan."""
    controller = Controller(pipeline, replace(SETTINGS, engine="torch"))
    controller.reset([5])
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(5)
    given, actions = [], []
    for _ in range(DECISIONS):
        frames = random.integers(0, 256, (1, 16, 16, 3), np.uint8)
        seen = {"frames": frames, "joints": random.normal(size=(1, 1)).astype(np.float32)}
        shape = pipeline.noise_shape(SETTINGS)
        noise = [torch.randn(shape, generator=generator) for _ in range(draws)]
        given.append(seen | {"noise": torch.stack(noise)[None].numpy()})
        actions.append(controller.act(seen)[0])
    return given, actions, controller.plan


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_it_acts_as_the_controller_in_python_without_torch(folder: Path, engine: str) -> None:
    output = folder.with_name("graphs")
    for _ in range(2):  # a second one takes the place of the first
        _, policy = export(folder, engine, output, asdict(SETTINGS))
    given, actions, plan = decisions(MPDiffuserPipeline.from_pretrained(folder), 3)  # the pipeline is as it was
    np.savez(folder.with_name("given.npz"), **{f"{i}/{k}": v for i, each in enumerate(given) for k, v in each.items()})
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom run_policy import Policy\n"
        f"policy, given = Policy(Path({str(output)!r})), np.load({str(folder.with_name('given.npz'))!r})\n"
        "found = []\n"
        f"for i in range({DECISIONS}):\n"
        "    found.append(policy.act({k: given[f'{i}/{k}'] for k in ('frames', 'joints')}, given[f'{i}/noise']))\n"
        "assert 'torch' not in sys.modules and 'mpdiffuser' not in sys.modules\n"
        "actions = [each['action'][0] for each in found]\n"
        f"np.savez({str(folder.with_name('found.npz'))!r}, actions=actions, **found[-1])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=EXAMPLES)
    found = np.load(folder.with_name("found.npz"))
    close(found["actions"], np.stack(actions))
    close(found["plan_actions"], plan.executed_actions.numpy())
    close(found["plan_latents"], plan.executed_latents.numpy())
    close(found["score"], (plan.weights * plan.scores).sum(1).numpy())
    assert found["sound"].all()
    facts = json.loads((output / "policy.json").read_text())
    assert list(facts["inputs"]) == policy.inputs == ["frames", "joints", "start", "features", "actions", "noise"]
    assert (facts["action_low"], facts["action_high"]) == ([-2, -1], [3, 1])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_it_acts_as_the_controller_in_cpp(folder: Path, tmp_path: Path) -> None:
    import openvino

    file, _ = export(folder, "openvino", tmp_path / "graphs", asdict(SETTINGS))
    given, actions, _ = decisions(MPDiffuserPipeline.from_pretrained(folder), 3)
    (tmp_path / "given").write_bytes(b"".join(part.tobytes() for each in given for part in each.values()))
    package, program = Path(openvino.__file__).parent, tmp_path / "run_policy"
    (library,) = package.glob("libs/libopenvino.so.*")
    flags = [f"-I{package / 'include'}", f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", f"-l:{library.name}"]
    subprocess.run(["g++", "-std=c++17", EXAMPLES / "run_policy.cpp", *flags, "-o", program], check=True)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, file, *arguments], capture_output=True, text=True)

    close(np.loadtxt(run(str(DECISIONS), tmp_path / "given").stdout.splitlines()), np.stack(actions))
    assert np.isfinite(np.loadtxt(run("2").stdout.splitlines())).all()  # noise of its own
    short = run("9", tmp_path / "given")
    assert short.returncode == 2 and "too short" in short.stderr


def test_the_command(folder: Path, monkeypatch, capsys) -> None:
    options = [f"pipeline={folder}", "engine=onnx", "sampler.candidates=5", "sampler.steps=2", "robots=2"]
    monkeypatch.setattr(sys, "argv", ["mpdiffuser export", *options])
    main()
    printed = capsys.readouterr().out
    assert "input: noise float32 (2, 1, 3, 8, 5)" in printed and "input: frames uint8 (2, 16, 16, 3)" in printed
    facts = json.loads((folder.with_name("pipeline-onnx") / "policy.json").read_text())
    assert (facts["candidates"], facts["levels"]) == (5, 2)


def test_bad_input_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine: must be one of openvino, onnx, found 'torch'"):
        export(folder, "torch", tmp_path / "graphs")
    with pytest.raises(InputError, match=r"output_dir: .* lies in the pipeline's folder"):
        export(folder, "onnx", folder / "graphs")
    with pytest.raises(InputError, match=r"output_dir: .* holds something else"):
        export(folder, "onnx", tmp_path)
    with pytest.raises(InputError, match="not a pipeline folder"):
        export(tmp_path / "nothing", "onnx", tmp_path / "graphs")
    with pytest.raises(InputError, match=r"sampler.warm_start: must be 0 in a graph, found 1"):
        export(folder, "onnx", tmp_path / "graphs", {"warm_start": 1})
