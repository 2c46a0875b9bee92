"""What evaluation keeps, repeats and refuses, without simulators."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from mpdiffuser.evaluation import Outcome

import evaluate
from experiments.reliability.fuzz import make_pipeline
from mpdiffuser.config import load
from mpdiffuser.errors import InputError

METHODS = ["random", "cloning", "planner", "ours"]


class Stub:
    """Environments with the spaces of `make_pipeline`'s data, that nobody steps."""

    def __init__(self, count: int, processes: Any, **options: Any) -> None:
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        self.decision_seconds = 0.04

    def close(self) -> None:
        pass


@pytest.fixture
def stage(tmp_path: Path, monkeypatch) -> SimpleNamespace:
    """A pipeline folder, and evaluations that only note what was evaluated; `stop` is cut off."""
    make_pipeline(tmp_path / "pipeline")
    edit_info(tmp_path / "pipeline", environment={"env_id": "Hopper-v4"})
    stage = SimpleNamespace(folder=tmp_path / "pipeline", output=tmp_path / "out", asked=[], stop=None, value=1.0)

    def noted(controllers: Any, environments: Any, seeds: Any, *rest: Any, label: str) -> Outcome:
        if label == stage.stop:
            raise KeyboardInterrupt
        stage.asked.append(label)
        return Outcome(np.array([stage.value, 2.0]), np.array([3, 3]), np.zeros(2), 0.1, 2)

    monkeypatch.setattr(evaluate, "VectorEnv", Stub)
    monkeypatch.setattr(evaluate, "evaluate", noted)
    return stage


def edit_info(folder: Path, **changes: Any) -> None:
    from mpdiffuser.files import write_manifest

    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["info"] |= changes
    file.write_text(json.dumps(index))
    write_manifest(folder)


def configuration(stage: SimpleNamespace, *more: str) -> Any:
    methods = f"evaluation.methods=[{','.join(METHODS)}]"
    return load("evaluate", [f"pipeline={stage.folder}", "evaluation.episodes=2", methods, *more])


@pytest.mark.parametrize("stop", METHODS)
def test_an_evaluation_that_was_cut_off_goes_on(stage: SimpleNamespace, stop: str) -> None:
    cfg, stage.stop = configuration(stage), stop
    with pytest.raises(KeyboardInterrupt):
        evaluate.compare(cfg, stage.folder, stage.output)
    assert not (stage.output / "metrics.json").exists()
    stage.stop = None
    metrics = evaluate.compare(cfg, stage.folder, stage.output)
    assert stage.asked == METHODS and list(metrics["methods"]) == METHODS
    assert not (stage.output / "metrics.partial.json").exists()
    assert evaluate.compare(cfg, stage.folder, stage.output) == json.loads((stage.output / "metrics.json").read_text())
    assert stage.asked == METHODS


def test_another_evaluation_starts_anew(stage: SimpleNamespace) -> None:
    stage.stop = "ours"
    with pytest.raises(KeyboardInterrupt):
        evaluate.compare(configuration(stage), stage.folder, stage.output)
    stage.stop = None
    evaluate.compare(configuration(stage, "sampler.steps=3"), stage.folder, stage.output)
    assert stage.asked == [*METHODS[:3], *METHODS]
    with pytest.raises(InputError, match=r"made with another settings: .*'steps': 3.*there, .*'steps': 4.* now"):
        evaluate.compare(configuration(stage), stage.folder, stage.output)


def test_a_recorded_evaluation_is_repeated(stage: SimpleNamespace) -> None:
    first = evaluate.compare(configuration(stage, "sampler.steps=3", "threads=2"), stage.folder, stage.output)
    file = stage.output / "metrics.json"
    cfg = configuration(stage)
    assert evaluate.recorded(file, cfg, stage.folder) == first
    assert cfg.sampler.steps == 3 and cfg.evaluation.methods == METHODS
    assert not evaluate.differences(first, evaluate.compare(cfg, stage.folder, stage.output / "again"))
    stage.value = 1.5
    second = evaluate.compare(cfg, stage.folder, stage.output / "other")
    assert evaluate.differences(first, second)[0] == "random.returns: [1.0, 2.0] there, [1.5, 2.0] now"
    edit_info(stage.folder, data="other")
    with pytest.raises(InputError, match=r"metrics\.json: of the pipeline \w+, found \w+ in"):
        evaluate.recorded(file, cfg, stage.folder)


@pytest.mark.parametrize(
    ("info", "options", "words"),
    [
        ({"rendering": "fast"}, ["rendering=full"], r"rendering: .* trained with 'fast', found 'full'"),
        ({"size": 64}, ["size=84"], r"size: .* trained with 64, found 84"),
        ({"action_repeat": 4}, ["action_repeat=2"], r"action_repeat: .* trained with 4, found 2"),
        ({"camera": 1}, ["camera=0"], r"camera: .* trained with 1, found 0"),
        ({"decision_seconds": 0.02}, [], r"environment: decision_seconds 0\.04, but .* trained with 0\.02"),
        ({}, ["task_name=walker_walk"], r"task_name: .* trained on 'none', found 'walker_walk'"),
        ({"observation": {"shape": [4], "dtype": "float32"}}, [], r"observations \(3,\), but .* trained with \(4,\)"),
        ({"observation": {"shape": [3], "dtype": "uint8"}}, [], r"dtype float32, but .* trained with uint8"),
        ({"environment": {"env_id": "x", "command": "y"}}, [], r"info\.environment: must hold env_id and speed_limit"),
    ],
)
def test_what_does_not_fit_the_record(
    stage: SimpleNamespace, info: dict[str, Any], options: list[str], words: str
) -> None:
    edit_info(stage.folder, **info)
    with pytest.raises(InputError, match=words):
        evaluate.compare(configuration(stage, *options), stage.folder, stage.output)
    assert not set(stage.asked) & {"cloning", "planner", "ours"}


@pytest.mark.parametrize(
    ("low", "high", "dimension", "words"),
    [(-2, 1, 2, "low -2.0, .* -1.0"), (-1, 3, 2, "high 3.0, .* 1.0"), (-1, 1, 3, r"actions \(3,\).*\(2,\)")],
)
def test_an_environment_with_other_actions(
    stage: SimpleNamespace, monkeypatch, low: float, high: float, dimension: int, words: str
) -> None:
    class Other(Stub):
        def __init__(self, *inputs: Any, **options: Any) -> None:
            super().__init__(*inputs, **options)
            self.single_action_space = gymnasium.spaces.Box(low, high, (dimension,))

    monkeypatch.setattr(evaluate, "VectorEnv", Other)
    with pytest.raises(InputError, match=rf"environment: {words}"):
        evaluate.compare(configuration(stage), stage.folder, stage.output)


def test_an_environment_that_names_a_module() -> None:
    from envs.gym_env import GymEnv

    with pytest.raises(InputError, match=r"environment 'os:Hopper-v4': must be a name such as"):
        GymEnv("os:Hopper-v4")
