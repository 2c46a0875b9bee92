"""Both train commands on a user's own recordings, without a simulator, at the smallest sizes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import evaluate
import train_state
import train_vision
from envs.datasets import open_datasets
from experiments import cameras
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.windows import split_indices
from vision.data import cached_features, encode

TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "trackers=[]", "validation=0.3"]
TINY += [f"train.{model}.steps=4" for model in ("planner", "dynamics", "forward", "ranker", "cloning")]
PIXELS = ["encoder.backbone=torchvision:resnet18", "encoder.pool=1", "encoder.history=2", "encoder.pretrained=false"]
PIXELS += ["train.representation.steps=4", "train.decoder.steps=2"]
EPISODES, STEPS = 6, 12
ROWS = EPISODES * (STEPS + 1)
ENDS = np.arange(ROWS) % (STEPS + 1) == STEPS

Run = Callable[..., str]


@pytest.fixture
def told(run: Callable[..., tuple[int, str, str]]) -> Run:
    """Run a command and return what it printed; an error is raised with its text."""

    def run_main(module: object, *options: str) -> str:
        status, printed, error = run(module, *options)
        if status:
            assert status == 2
            raise InputError(error)
        return printed

    return run_main


def arm(file: Path, **arrays: np.ndarray) -> Path:
    """A recording of an arm: 23 values, 7 joint targets in degrees, 30 to 60 of each joint."""
    random = np.random.default_rng(0)
    found = {"observations": random.normal(size=(ROWS, 23)), "actions": random.uniform(30, 60, (ROWS, 7))}
    np.savez(file, **(found | {"truncations": ENDS} | arrays))  # type: ignore[arg-type]
    return file


@pytest.mark.slow
def test_an_arm(tmp_path: Path, told: Run) -> None:
    file, output = arm(tmp_path / "arm.npz"), tmp_path / "out"
    printed = told(train_state, f"dataset={file}", f"output_dir={output}", *TINY)
    assert "no rewards: the planner imitates the data, and no ranker is trained" in printed
    assert "not evaluated in an environment: there is no environment" in printed
    assert not (output / "ranker").exists() and not (output / "metrics.json").exists()
    held_out = json.loads((output / "held_out.json").read_text())
    assert set(held_out["actions"]) == {
        "planner", "mpdiffuser", "cloning", "mean action", "repeat the last action"
    }  # fmt: skip
    assert all(len(each["each"]) == 7 for each in held_out["actions"].values())
    assert held_out["ranker"] is None
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    controller = Controller(pipeline)
    bounds = open_datasets(str(file)).record.actions
    controller.reset([0])
    for row in range(3):
        action = controller.act(np.full(23, row, np.float32))
        assert action.shape == (7,) and action.dtype == np.float32
        assert (action >= np.float32(bounds.low)).all() and (action <= np.float32(bounds.high)).all()
    assert controller.plan is not None
    plan = controller.plan.executed_actions.numpy()
    assert plan.min() >= min(bounds.low) - 1e-3 and plan.max() <= max(bounds.high) + 1e-3


@pytest.mark.slow
def test_declared_bounds_are_kept_or_the_data_are_refused(tmp_path: Path, told: Run) -> None:
    ends = {"action_low": np.full(7, 30.0), "action_high": np.full(7, 50.0)}
    file, output = arm(tmp_path / "arm.npz", **ends), tmp_path / "out"
    words = [f"dataset={file}", f"output_dir={output}", *TINY]
    with pytest.raises(InputError, match=r"arm.npz: .* beyond the declared bounds; action 0 .* out_of_bounds=clip"):
        told(train_state, *words)
    assert not (output / "planner").exists()
    assert "out_of_bounds=clip" in told(train_state, *words, "out_of_bounds=clip")
    controller = Controller(MPDiffuserPipeline.from_pretrained(output / "pipeline"))
    controller.reset([0])
    assert (controller.act(np.zeros(23, np.float32)) <= 50).all()


@pytest.mark.slow
def test_a_history_of_states(tmp_path: Path, told: Run) -> None:
    output = tmp_path / "out"
    told(train_state, f"dataset={arm(tmp_path / 'arm.npz')}", f"output_dir={output}", "history=3", *TINY)
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    assert pipeline.latents.config["dim"] == 3 * 23 + 2 * 7
    controller = Controller(pipeline)
    controller.reset([0])
    assert controller.act(np.zeros(23, np.float32)).shape == (7,)


@pytest.mark.slow
def test_a_goal(tmp_path: Path, told: Run) -> None:
    output = tmp_path / "out"
    rewards = {"rewards": np.ones(ROWS)}
    words = [f"dataset={arm(tmp_path / 'arm.npz', **rewards)}", f"output_dir={output}", "goals=true", *TINY]
    with pytest.raises(InputError, match=r"evaluation.methods: iql need rewards. goals=true"):
        told(train_state, *words, "method=iql")
    assert "goals=true: rewards are not used" in told(train_state, *words)
    with pytest.raises(InputError, match="environment is missing: it cannot be evaluated; give environment="):
        told(evaluate, f"pipeline={output / 'pipeline'}")
    controller = Controller(MPDiffuserPipeline.from_pretrained(output / "pipeline"))
    controller.reset([0])
    state = np.zeros(23, np.float32)
    with pytest.raises(InputError, match="goal: the planner was trained with goals"):
        controller.act(state)
    controller.act(state, goal=state + 1)
    first = controller.plan
    controller.act(state)  # the goal is kept
    controller.reset([0])
    controller.act(state, goal=state - 1)
    assert first is not None and controller.plan is not None
    assert not torch.equal(first.executed_actions, controller.plan.executed_actions)


@pytest.mark.slow
def test_two_cameras_and_joints(tmp_path: Path, told: Run) -> None:
    random = np.random.default_rng(0)
    shapes = {"top": (40, 56, 3), "side": (32, 32, 3)}
    arrays = {name: random.integers(0, 256, (ROWS, *shape), np.uint8) for name, shape in shapes.items()}
    arrays |= {"joints": random.normal(size=(ROWS, 3)).astype(np.float32)}
    arrays |= {"actions": random.uniform(-9, 9, (ROWS, 2)).astype(np.float32), "rewards": np.zeros(ROWS, np.float32)}
    arrays |= {"terminations": np.zeros(ROWS, bool), "truncations": np.roll(ENDS, -1)}
    arrays["actions"][ENDS] = 0
    observations = {name: Observation(PICTURE, shape) for name, shape in shapes.items()}
    observations["joints"] = Observation(PROPRIOCEPTION, (3,), ("a", "b", "c"))
    record = Record(observations, Actions((-10.0, -10.0), (10.0, 10.0), "declared"))
    offsets = np.arange(EPISODES + 1) * (STEPS + 1)
    Episodes(arrays, offsets, {"missing": ["rewards"]}, record=record).save(tmp_path / "robot")
    output = tmp_path / "out"
    words = [f"dataset={tmp_path / 'robot'}", f"output_dir={output}", f"data_root={tmp_path / 'data'}"]
    told(train_vision, *words, *TINY, *PIXELS)
    assert imageio.imread(output / "held_out.png").shape == (2 * 4 * 32, 3 * 32, 3)  # side, 0, 2 and 4 steps ahead
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    assert pipeline.latents.config["dim"] == 32 + 3
    controller = Controller(pipeline)
    controller.reset([0])
    seen = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
    action = controller.act(seen | {"joints": np.zeros(3, np.float32)})
    assert action.shape == (2,) and (np.abs(action) <= 10).all()
    with pytest.raises(
        InputError, match=r"must be a dict of joints float32 \(B, 3\), side uint8 \(B, 32, 32, 3\), top"
    ):
        controller.act(seen["top"])
    with pytest.raises(InputError, match=r"found \['side', 'top'\]"):
        controller.act(seen)


@pytest.mark.slow
def test_latents_of_demonstrations_tell_where_the_arm_is(tmp_path: Path, told: Run) -> None:
    """On held-out episodes, by a linear regression; the object is in the pictures alone."""
    data, _ = cameras.recordings(5, episodes=EPISODES, steps=STEPS)
    data.save(tmp_path / "arm")
    output = tmp_path / "out"
    words = [f"dataset={tmp_path / 'arm'}", f"output_dir={output}", f"data_root={tmp_path / 'data'}"]
    told(train_vision, *words, *TINY, *PIXELS)
    losses = [json.loads(line) for line in (output / "representation" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["following"]) for line in losses if "following" in line)
    assert any("validation_following" in line for line in losses)
    encoder = MPDiffuserPipeline.from_pretrained(output / "pipeline").encoder
    latents = encode(encoder, data, cached_features(encoder, data, tmp_path / "data" / "cache"))
    train, held_out = (np.isin(data.episode_of_row, part) for part in split_indices(EPISODES, 0.3, 0))
    arm = data["observations"]
    assert held_out.any() and cameras.linear_r2(latents, arm, train, held_out) > 0.95


def test_pictures_alone_are_for_the_other_command(tmp_path: Path, told: Run) -> None:
    file = tmp_path / "film.npz"
    frames = np.zeros((ROWS, 32, 32, 3), np.uint8)
    np.savez(file, frames=frames, actions=np.zeros((ROWS, 2)), truncations=ENDS)
    with pytest.raises(InputError, match=r"holds only pictures; for pictures use train_vision\.py"):
        told(train_state, f"dataset={file}", f"output_dir={tmp_path / 'out'}", *TINY)
    words = [f"dataset={arm(tmp_path / 'arm.npz')}", f"output_dir={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}"]
    with pytest.raises(InputError, match=r"holds no pictures; for states use train_state\.py"):
        told(train_vision, *words, *TINY, *PIXELS)


@pytest.mark.slow
def test_an_environment_without_goals(tmp_path: Path, told: Run) -> None:
    random = np.random.default_rng(0)
    arrays = {"observations": random.normal(size=(ROWS, 3)), "actions": random.uniform(-2, 2, (ROWS, 1))}
    file = arm(tmp_path / "swings.npz", **arrays)
    output = tmp_path / "out"
    words = [f"dataset={file}", f"output_dir={output}", "environment=Pendulum-v1", "goals=true", *TINY]
    reason = r"the environment gives none: no observation info\['goal'\] at its reset"
    assert re.search(f"not evaluated in an environment: .*{reason}", told(train_state, *words))
    with pytest.raises(InputError, match=f"takes goals, but {reason}; use Controller.act"):
        told(evaluate, f"pipeline={output / 'pipeline'}")
