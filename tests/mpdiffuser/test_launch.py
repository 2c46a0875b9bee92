"""Start-up of a training: what is refused before anything runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_trackers, check_training, origin, start, start_trackers, train_config
from mpdiffuser.trainer import TrainConfig, Trainer


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("horizon=15", r"horizon: must be a multiple of 2.*found 15"),
        ("discount=1.0", r"discount: must lie in 0\.\."),
        ("validation=1.5", r"validation: must lie in 0\.\.1, found 1\.5"),
        ("advantage.effective_windows=-1", r"advantage\.effective_windows: must be 0 or more, found -1"),
        ("advantage.gae_lambda=2.0", r"advantage\.gae_lambda: must lie in 0\.\.1, found 2"),
        ("episode_advantage.temperature=0", r"episode_advantage\.temperature: must be positive, found 0"),
        ("seed=-1", r"seed: must lie in 0\.\."),
        ("threads=0", r"threads: must lie in 1\.\."),
        ("mixed_precision=fp8", r"mixed_precision: .*'fp8'"),
        ("trackers=[comet]", r"trackers: .*comet"),
        ("processes=0", r"processes: must lie in 1\.\."),
        ("train.planner.steps=0", r"train\.planner\.steps: must be positive"),
        ("sampler.steps=101", r"sampler\.steps: must lie in 1\.\.100.*101"),
        ("sampler.grid=cubic", r"sampler\.grid: .*'cubic'"),
        ("sampler.chunk=16", r"sampler\.chunk: must lie in 1\.\.15 .*16"),
        ("planner.prediction=noise", r"prediction: must be one of .*'noise'"),
        ("planner.level_draws=0", r"planner\.level_draws: must be at least 1, found 0"),
        ("ranker.expectiles=1", r"ranker\.expectiles: must be at least 2, found 1"),
        ("train.ranker.stepz=3", r"train\.ranker\.stepz: no such option"),
    ],
)
def test_values_that_cannot_be_are_told_before_anything_runs(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        start(load("vision", [f"output_dir={tmp_path / 'out'}", override]))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"output_dir: .*out is a file"):
        start(load("vision", [f"output_dir={tmp_path / 'out'}"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampler.steps=0", r"sampler\.steps: .*0"),
        ("sampler.composition=mixed", r"sampler\.composition: must be one of fused, release, planner"),
        ("sampler.solver=euler", r"sampler\.solver: must be one of"),
        ("sampler.eta=1.5", r"sampler\.eta: must lie in 0..1, found 1\.5"),
        ("sampler.guidance_interval=[0.2]", r"sampler\.guidance_interval: must be \[low, high\].*found \[0\.2\]"),
        ("sampler.deadline_ms=-1", r"sampler\.deadline_ms: must be at least 0, found -1"),
    ],
)
def test_sampler_values_that_cannot_be(override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_training(load("vision", [override]))


def test_the_settings_of_each_method_that_takes_part_are_checked() -> None:
    """And of no other: a baseline that is not asked for may not fit."""
    words = r"baselines\.d_mpc\.chunk: must lie in 1\.\.15 \(below the horizon\), found 16"
    with pytest.raises(InputError, match=words):
        check_training(load("state", ["method=d_mpc", "baselines.d_mpc.chunk=16"]))
    check_training(load("state", ["method=iql", "baselines.d_mpc.chunk=16"]))
    with pytest.raises(InputError, match=r"baselines\.diffuser\.steps: must lie in 1\.\.100"):
        check_training(load("state", ["method=diffuser", "baselines.diffuser.steps=101"]))


def test_a_methods_own_settings_are_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"baselines\.iql\.expectile: must lie between 0 and 1, found 3"):
        check_training(load("vision", ["method=iql", "baselines.iql.expectile=3"]))


def test_training_settings_have_the_runs_seed_and_intervals() -> None:
    cfg = load("state", ["seed=7", "checkpoint_every=50", "skip_bad_steps=2", "train.dynamics.steps=9"])
    found = train_config(cfg, "dynamics")
    wanted = TrainConfig(9, 64, 1e-3, seed=7, checkpoint_every=50, skip_bad_steps=2)
    assert found == wanted
    cfg.train.dynamics.batch_size = 0
    with pytest.raises(InputError, match=r"train\.dynamics\.batch_size: must be positive, found 0"):
        train_config(cfg, "dynamics")


def test_a_launch_that_would_start_one_process_only(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="accelerate launch --cpu always starts one process"):
        check_training(load("state", []))


def test_what_a_pipeline_says_of_its_making() -> None:
    found = origin(load("state", ["seed=3"]))
    assert found["seed"] == 3
    assert set(found["versions"]) == {
        "python",
        "mpdiffuser",
        "torch",
        "diffusers",
        "accelerate",
        "numpy",
        "safetensors",
    }
    assert all(re.match(r"\d+\.\d+", version) for version in found["versions"].values())


def test_the_clock_adds_up(monkeypatch) -> None:
    now = iter([0.0, 1.5, 10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr("mpdiffuser.launch.time.perf_counter", lambda: next(now))
    clock = Clock()
    for stage in ("ranker", "ranker", "planner"):
        with clock(stage):
            pass
    assert clock.seconds == {"ranker": 3.5, "planner": 0.5}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on a GPU")
def test_fp16_on_a_cpu() -> None:
    with pytest.raises(InputError, match="mixed_precision: fp16 needs a GPU"):
        check_training(load("state", ["mixed_precision=fp16"]))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_ways_of_training_that_accelerate_launch_may_set(variable: str, monkeypatch) -> None:
    monkeypatch.setenv(variable, "false")
    check_training(load("state", []))
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=f"{variable}=true: .*unset it"):
        check_training(load("state", []))


START = """
import json, sys
from mpdiffuser.config import load
from mpdiffuser.launch import start, start_trackers
accelerator = start(load("state", ["trackers=[]", f"output_dir={sys.argv[1]}"]))
state = accelerator.state
print(json.dumps([accelerator.gradient_accumulation_steps, state.mixed_precision, state.dynamo_plugin.backend.value]))
"""


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "many",
                "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
                "ACCELERATE_MIXED_PRECISION": "fp8",
            },
            "",
        ),
        ({"ACCELERATE_USE_CPU": "perhaps"}, "ACCELERATE_USE_CPU=perhaps"),
    ],
)
def test_values_that_accelerate_finds_in_the_environment(variables: dict[str, str], words: str, tmp_path: Path) -> None:
    """Either they have no effect, or the error names them. In a process of its own: accelerate keeps a state."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, "-c", START, str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if words:
        assert done.returncode and done.stderr.strip().splitlines()[-1].startswith("mpdiffuser.errors.InputError: acc")
        assert words in done.stderr.strip().splitlines()[-1]
    else:
        assert json.loads(done.stdout.splitlines()[-1]) == [1, "no", "NO"], done.stderr


def test_a_trainer_does_not_accumulate(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=3))
    model = torch.nn.Linear(1, 1)
    model.config = {}  # type: ignore[assignment]
    with pytest.raises(InputError, match="gradient_accumulation_steps must be 1, found 3"):
        Trainer("tiny", model, [], [], TrainConfig(), tmp_path, accelerator)  # type: ignore[arg-type]


def test_a_tracker_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(InputError, match=r"trackers: wandb is not installed: pip install 'mpdiffuser\[wandb\]'"):
        check_trackers(["wandb"])


@pytest.mark.parametrize(
    ("mode", "key", "words"),
    [
        ("offline", "", ""),
        ("online", "abc", ""),
        (
            "online",
            "",
            r"trackers: wandb cannot log in \(no key here\): run `wandb login`, or set .*WANDB_MODE=offline",
        ),
    ],
)
def test_a_tracker_that_needs_a_key(mode: str, key: str, words: str, tmp_path: Path, monkeypatch) -> None:
    """A stand-in for wandb, which is no dependency: its mode and key come from the environment, as those of wandb."""
    (tmp_path / "wandb.py").write_text(
        "import os, types\n"
        "def setup(): return types.SimpleNamespace(settings=types.SimpleNamespace(mode=os.environ['WANDB_MODE']))\n"
        "def login():\n"
        "    if not os.environ['WANDB_API_KEY']: raise RuntimeError('no key here')\n"
        "    return True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    if words:
        with pytest.raises(InputError, match=words):
            check_trackers(["tensorboard", "wandb"])
    else:
        check_trackers(["tensorboard", "wandb"])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_trackers_get_each_option_by_its_name(tmp_path: Path) -> None:
    cfg = load("state", [f"output_dir={tmp_path / 'a=b'}", "seed=5", "trackers=[tensorboard]"])
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path / "logs")
    start_trackers(accelerator, cfg)
    accelerator.end_training()
    summaries = {}
    for file in (tmp_path / "logs").rglob("events*"):
        events = EventAccumulator(str(file))
        events.Reload()
        summaries |= events.summary_metadata
    assert "_hparams_/session_start_info" in summaries
    start_info = str(summaries["_hparams_/session_start_info"])
    for word in ("task.name", "hopper-medium-v2", "seed", "sampler.candidates", "a=b"):
        assert word in start_info
