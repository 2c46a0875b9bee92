"""The wheel: what it holds, and its command in a folder whose names are those of the wheel's packages."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import mpdiffuser
from envs.experts import tasks
from mpdiffuser_cli import COMMANDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NO_SOURCE = ("data", "results", "runs", "outputs", "build", "site", "*.egg-info", "__pycache__", ".*")
OWN = {name: "raise ImportError('a file of the user')\n" for name in ("envs", "vision", "configs", "evaluation")}
SMALL = ["debug=true", "processes=1", "trackers=[]", "rounds=1", "horizon=8", "data_dir=.", "output_dir=out"]


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints, run in a folder and without this process's import path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, made of a copy of the source: building writes into the source's folder."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NO_SOURCE))
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "source", folder=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory) -> Path:
    """`mpdiffuser` of an environment with the wheel, a package called evaluate, and the packages installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    (packages / "installed_here.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    options = ("--quiet", "--no-index", "--no-deps", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, folder=folder)
    (packages / "evaluate").mkdir()
    (packages / "evaluate" / "__init__.py").write_text("def load(path): ...\n")  # as Hugging Face's
    return folder / "bin" / "mpdiffuser"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The user's folder: packages and a script with our names, and data."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in OWN.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    (folder / "evaluate.py").write_text("raise ImportError('a file of the user')\n")
    lengths = np.random.default_rng(0).integers(20, 60, 12)
    rows = int(lengths.sum())
    random = np.random.default_rng(1)
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    with h5py.File(folder / "hopper-medium.hdf5", "w") as file:  # D4RL's layout
        file["observations"] = random.normal(size=(rows, 11)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = random.normal(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = ends, np.zeros(rows, bool)
    return folder


def test_what_the_wheel_holds(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    tops = {Path(name).parts[0].removesuffix(".py") for name in files if ".dist-info/" not in name}
    packages = {"mpdiffuser", "vision", "envs", "evaluation", "configs"}
    assert tops == packages | {"train_vision", "train_state", "mpdiffuser_cli"}
    top_level = next(name for name in files if name.endswith("top_level.txt"))
    assert set(zipfile.ZipFile(wheel).read(top_level).decode().split()) == tops
    data = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("configs/**/*.yaml")}
    data |= {file.relative_to(ROOT).as_posix() for file in ROOT.glob("envs/experts/policies/*/*.safetensors")}
    assert data and data <= files
    assert {f"envs/experts/policies/{task}/expert.safetensors" for task in tasks()} <= data
    source = {file.relative_to(ROOT).as_posix() for name in packages for file in ROOT.glob(f"{name}/**/*.py")}
    assert source <= files


def test_every_command_is_there(command: Path, folder: Path) -> None:
    """What each prints with --help: tests/test_cli.py."""
    assert run(command, "--version", folder=folder).strip() == mpdiffuser.__version__
    listed = run(command, "--help", folder=folder)
    assert all(f"  {name} " in listed for name in COMMANDS)
    modules = "import importlib, mpdiffuser_cli as cli; [importlib.import_module(m) for m, _ in cli.COMMANDS.values()]"
    run(command.with_name("python"), "-P", "-c", modules, folder=folder)
    assert "sage: mpdiffuser serve [" in run(command, "serve", "--help", folder=folder)


def test_training_and_evaluating(command: Path, folder: Path) -> None:
    printed = run(command, "train-state", "task=d4rl/hopper-medium-v2", "method=planner", *SMALL, folder=folder)
    assert "Report: out/report.html" in printed and (folder / "out" / "report.html").is_file()
    few = ("evaluation.episodes=1", "evaluation.methods=[planner]", "processes=1")
    printed = run(command, "evaluate", "pipeline=out/pipeline", *few, folder=folder)
    assert "Report: out/evaluation/report.html" in printed


def test_simulators_start_beside_a_folder_of_the_same_name(command: Path, folder: Path) -> None:
    """Collecting starts worker processes; the doctor starts processes that render."""
    options = ("debug=true", "quality=random", "task=point_mass_easy", "processes=1")
    printed = run(command, "collect", *options, folder=folder)
    assert "mean return" in printed
    assert "point_mass_easy" in run(command, "datasets", "show", printed.splitlines()[-1], folder=folder)
    assert " works: " in run(command, "doctor", folder=folder)
