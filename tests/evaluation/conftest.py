"""A pipeline folder, and evaluations that step no simulator."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from evaluation import compare
from evaluation.closed_loop import Outcome
from mpdiffuser.config import load
from mpdiffuser.files import write_manifest
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import TRUE_STATE, Actions, Observation, Record

METHODS = ["random", "cloning", "planner", "mpdiffuser"]
INFO = {
    "task": "none",
    "data": "abc",
    "record": Record({"observations": Observation(TRUE_STATE, (3,))}, Actions.unit(2)).to_json(),
    "environment": {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None},
}


class Stub:
    """Environments with the spaces of the tiny pipeline, that nobody steps."""

    def __init__(self, record: Any, num_envs: int, processes: Any = None, observation: str = "states") -> None:
        self.record, self.num_envs, self.observation = record, num_envs, observation
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        self.decision_seconds, self.can_peek = 0.04, True

    def close(self) -> None:
        """Nothing is open."""


def edit_info(folder: Path, **changes: Any) -> None:
    """Change entries of a pipeline's info; None removes one."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["info"] = {key: value for key, value in (index["info"] | changes).items() if value is not None}
    file.write_text(json.dumps(index))
    write_manifest(folder)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, make_folder: Any, make_pipeline: Any) -> Path:
    """A tiny pipeline with the models of METHODS, to be copied."""
    return make_folder(tmp_path_factory.mktemp("evaluation") / "pipeline", pipeline=make_pipeline(info=INFO))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline_folder: Path) -> SimpleNamespace:
    """A pipeline folder, and evaluations that only note what was evaluated; `stop` is cut off.

    Attributes: folder, output; asked: rows that were evaluated; stop: the row to cut off at; value: the first return;
    Stub: the class of the environments; edit_info; configuration(*overrides); compare(cfg, output).
    """
    folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    found = SimpleNamespace(folder=folder, output=tmp_path / "out", asked=[], stop=None, value=1.0, Stub=Stub)

    def noted(policies: Any, environments: Any, seeds: Any, *rest: Any, label: str, **more: Any) -> Outcome:
        if label == found.stop:
            raise KeyboardInterrupt
        found.asked.append(label)
        return Outcome(np.array([found.value, 2.0]), np.array([3, 3]), np.zeros(2), 0.1, 2)

    def configuration(*overrides: str) -> Any:
        methods = f"evaluation.methods=[{','.join(METHODS)}]"
        return load("evaluate", [f"pipeline={folder}", "evaluation.episodes=2", methods, *overrides])

    def run(cfg: Any, output: Path | None = None) -> dict[str, Any]:
        """As evaluate.py does."""
        output = output or found.output
        compare.use_saved_settings(cfg, MPDiffuserPipeline.from_pretrained(folder))
        compare.prepare(cfg, INFO["environment"], output)
        return compare.compare(cfg, folder, output)

    monkeypatch.setattr(compare, "VectorEnv", lambda *inputs, **options: found.Stub(*inputs, **options))
    monkeypatch.setattr(compare, "evaluate", noted)
    monkeypatch.setattr(compare, "write_film", lambda *inputs: None)
    found.edit_info, found.configuration, found.compare = edit_info, configuration, run
    found.methods = METHODS
    return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the main function of evaluate.py with options."""
    from evaluation.command import main

    def run(*options: str) -> None:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *options])
        main()

    return run
