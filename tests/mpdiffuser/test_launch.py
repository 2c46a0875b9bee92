"""Start-up of a training: what is refused before anything runs."""

import re
from pathlib import Path

import pytest

from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_training, origin, start, train_config
from mpdiffuser.trainer import TrainConfig


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
