"""The commands themselves, from pixels to a report, at debug size. A start costs seconds, so few are processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio.v2 as imageio
import pytest
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train_vision
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_manifest
from mpdiffuser.record import PICTURE, Actions, Observation, Record

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
SMALL = [
    "debug=true",
    "episodes=2",
    "quality=random",
    "episode_seconds=4",
    "evaluation.max_decisions=100",
    "processes=1",
    "sampler.engine=torch",
    "data_root=data",
    "output_dir=out",
]
MODELS = ("representation", "decoder", "planner", "dynamics", "ranker", "cloning")
METHODS = ["random", "cloning", "planner", "mpdiffuser", "expert"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow


def start(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which the flow ran once: data/, and the run in out/."""
    folder = tmp_path_factory.mktemp("commands")
    done = start(folder, *LAUNCH, ROOT / "train_vision.py", *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in METHODS:
        assert any(line.startswith(name) for line in done.stdout.splitlines())
    for words in ("Video:  out/video.mp4", "Report: out/report.html"):
        assert words in done.stdout.splitlines()
    return folder


def test_what_the_flow_leaves(trained: Path) -> None:
    out = trained / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["methods"]) == METHODS
    assert metrics["seeds"] == [1000, 1001]
    for name, values in metrics["methods"].items():
        assert values["lengths"] == [100, 100]
        assert values["mean"] == pytest.approx(sum(values["returns"]) / 2, abs=1e-3)
        assert ("plan_ms" in values) == ("feasibility" in values) == (name in ("planner", "mpdiffuser"))
    assert metrics["methods"]["expert"]["mean"] > 200  # of 400; the simulator and the policies fit together
    assert {"collect", "features", *MODELS} <= set(metrics["stages"])
    assert sum(1 for _ in imageio.get_reader(out / "video.mp4")) > 50
    logged = EventAccumulator(str(out / "tensorboard" / "mpdiffuser")).Reload()
    for name, values in metrics["methods"].items():
        assert logged.Scalars(f"evaluation/{name}/return")[0].value == pytest.approx(values["mean"], rel=1e-5, abs=1e-4)
    assert "evaluation/mpdiffuser/plan_error" in logged.Tags()["scalars"]
    report = (out / "report.html").read_text()
    assert "<html" in report and all(name in report for name in METHODS)
    files = [file for file in (out / "pipeline").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_a_second_run_reuses_everything_and_says_so(trained: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("*.safetensors", "*.npy", "metrics.json", "log.jsonl", "video.mp4", "manifest.json", "model_index.json")
    before = {file: file.read_bytes() for pattern in kept for file in trained.rglob(pattern)}
    monkeypatch.chdir(trained)
    status, printed, error = run(train_vision, *SMALL)
    assert status == 0, error
    assert "exists already, reused" in printed
    assert "Features: reusing" in printed
    for name in MODELS:
        assert f"{name}: trained already" in printed
    assert "Evaluation: reusing" in printed
    assert {file: file.read_bytes() for pattern in kept for file in trained.rglob(pattern)} == before


def test_evaluating_the_pipeline_alone_gives_the_same_returns(trained: Path, tmp_path: Path, run: Run) -> None:
    """In another place, without the data, with the sampler that is saved with it."""
    shutil.copytree(trained / "out" / "pipeline", tmp_path / "moved" / "pipeline")
    config = ["evaluation.episodes=2", "evaluation.methods=[mpdiffuser]", "evaluation.probe_every=50", "processes=1"]
    config += ["evaluation.max_decisions=100"]
    done = start(tmp_path, sys.executable, ROOT / "evaluate.py", "pipeline=moved/pipeline", *config)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "moved" / "evaluation" / "metrics.json").read_text())
    first = json.loads((trained / "out" / "metrics.json").read_text())
    assert list(found["methods"]) == ["mpdiffuser"]
    chosen = {"steps": first["methods"]["mpdiffuser"]["levels"]}  # the training chose it
    assert first["settings"]["sampler"]["steps"] is None
    assert found["settings"]["sampler"] == first["settings"]["sampler"] | chosen
    assert found["methods"]["mpdiffuser"]["returns"] == pytest.approx(
        first["methods"]["mpdiffuser"]["returns"], rel=1e-3
    )
    assert (tmp_path / "moved" / "evaluation" / "report.html").exists()
    weights = tmp_path / "moved" / "pipeline" / "cloning" / WEIGHTS
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    write_manifest(tmp_path / "moved" / "pipeline")  # otherwise it is refused as damaged
    status, _, error = run(evaluate, f"pipeline={tmp_path / 'moved' / 'pipeline'}", *config)
    assert status == 2 and "of another evaluation (pipeline: " in error  # never another model's figures


def test_a_recorded_evaluation_is_repeated_digit_for_digit(trained: Path, tmp_path: Path, run: Run) -> None:
    record = [f"repeat={trained / 'out' / 'metrics.json'}", f"pipeline={trained / 'out' / 'pipeline'}"]
    status, printed, error = run(evaluate, *record, f"output_dir={tmp_path / 'again'}", "processes=2")
    assert status == 0, error
    assert "Repeated: returns, lengths, costs and feasibility errors equal those of" in printed
    first, second = (
        json.loads((folder / "metrics.json").read_text()) for folder in (trained / "out", tmp_path / "again")
    )
    for name in METHODS:
        assert first["methods"][name]["returns"] == second["methods"][name]["returns"]


def test_the_pipeline_tells_its_origin(trained: Path) -> None:
    info = json.loads((trained / "out" / "pipeline" / "model_index.json").read_text())["info"]
    assert Record.from_json(info["record"], "") == Record(
        {"frames": Observation(PICTURE, (64, 64, 3))}, Actions.unit(1)
    )
    assert info["seed"] == 0 and info["versions"]["torch"] and info["environment"]["rendering"] == "fast"
    assert info["data"] == Episodes.load(next((trained / "data").glob("cartpole*"))).checksum()


def test_two_processes(trained: Path, tmp_path: Path) -> None:
    """The whole flow on two processes: the losses of one process, to rounding."""
    launch = [word if word != "1" else "2" for word in LAUNCH[:5]] + [*LAUNCH[5:], "--multi_gpu"]
    shutil.copytree(trained / "data", tmp_path / "data")
    done = start(tmp_path, *launch, ROOT / "train_vision.py", *SMALL, "evaluation.methods=[cloning,mpdiffuser]")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Features: reusing") == 2 and done.stdout.count("Report:") == 1
    for name in MODELS:
        logs = [folder / "out" / name / "log.jsonl" for folder in (trained, tmp_path)]
        one, two = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for key in {"loss", "validation_loss"} & a.keys():
                assert a[key] == pytest.approx(b[key], rel=0.05)  # each stage starts from the last one's rounding


def test_a_launch_that_would_start_one_process_only(tmp_path: Path) -> None:
    launch = [word if word != "1" else "2" for word in LAUNCH[:5]] + [*LAUNCH[5:], "--cpu"]
    done = start(tmp_path, *launch, ROOT / "train_vision.py", *SMALL)
    assert done.returncode != 0
    assert "error: accelerate launch --cpu always starts one process" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "options", "words"),
    [
        ("evaluate.py", ["pipeline=nowhere"], "pipeline: nowhere is not a pipeline folder"),
        ("train_vision.py", ["sampler.steps=0"], "sampler.steps: must be at least 1"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, program: str, options: list[str], words: str) -> None:
    small = SMALL if program == "train_vision.py" else []
    done = start(tmp_path, sys.executable, ROOT / program, *small, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.rglob("*.npy"))
