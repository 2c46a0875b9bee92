"""A new baseline is one new file: the worked example of docs/extend.md, in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = re.compile(r'^```python title="(?P<file>mpdiffuser/methods/\w+\.py)"\n(?P<text>.*?)^```$', re.M | re.S)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with a copy of the package mpdiffuser and the example's file in it, and nothing else."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "mpdiffuser", folder / "mpdiffuser", ignore=shutil.ignore_patterns("__pycache__"))
    example = EXAMPLE.search((ROOT / "docs/extend.md").read_text(encoding="utf-8"))
    assert example
    assert not (folder / example["file"]).exists()
    (folder / example["file"]).write_text(example["text"], encoding="utf-8")
    return folder


def hopper_file(folder: Path) -> None:
    """A few episodes of random numbers in the layout of D4RL's hopper files."""
    random, steps = np.random.default_rng(0), 240
    timeouts = np.zeros(steps, bool)
    timeouts[19::20] = True
    with h5py.File(folder / "hopper-medium.hdf5", "w") as file:
        file["observations"] = random.normal(size=(steps, 11)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (steps, 3)).astype(np.float32)
        file["rewards"] = random.normal(size=steps).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(steps, bool), timeouts


def run(package: Path, *options: str) -> str:
    """What train_state.py prints with the copied package in place of the project's."""
    paths = [str(package), str(ROOT)]
    program = f"import sys, runpy; sys.path[:0] = {paths}; runpy.run_module('train_state', run_name='__main__')"
    command = [sys.executable, "-P", "-c", program, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_example_is_trained_evaluated_and_reported(package: Path, tmp_path: Path) -> None:
    hopper_file(tmp_path)
    options = ["method=linear", "debug=true", "processes=1", "trackers=[]", "train.linear.steps=5"]
    printed = run(package, *options, f"data_dir={tmp_path}", f"output_dir={tmp_path / 'run'}")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics["methods"]) == ["linear"]
    assert metrics["settings"]["baselines"] == {"linear": {"ridge": 1e-3}}
    assert any(line.startswith("linear ") for line in printed.splitlines())
    report = (tmp_path / "run/report.html").read_text()
    assert "linear policy" in report and "--linear: #" in report
    assert (tmp_path / "run/pipeline/linear/diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.slow
def test_the_example_adds_its_options(package: Path) -> None:
    help_text = run(package, "--help")
    for option in ("linear:", "ridge: 0.001", "steps: 2000"):
        assert option in help_text
