"""The command evaluate.py on a pipeline folder, without simulators."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpdiffuser.pipeline import MPDiffuserPipeline


def test_it_writes_beside_the_pipeline(stage: SimpleNamespace, command: Callable[..., None], capsys) -> None:
    command(f"pipeline={stage.folder}", "evaluation.episodes=2", "evaluation.methods=[random,mpdiffuser]")
    output = stage.folder.parent / "evaluation"
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["random", "mpdiffuser"] == stage.asked and metrics["seeds"] == [1000, 1001]
    assert (output / "report.html").exists()
    printed = capsys.readouterr().out
    assert f"Metrics: {output / 'metrics.json'}" in printed and f"Report: {output / 'report.html'}" in printed
    assert any(line.startswith("mpdiffuser") for line in printed.splitlines())


def test_one_option_of_the_sampler_changes_one_setting(stage: SimpleNamespace, command: Callable[..., None]) -> None:
    """All others are as saved with the pipeline."""
    saved = MPDiffuserPipeline.from_pretrained(stage.folder).config["sampler_defaults"]
    for name, options in (("saved", []), ("changed", ["sampler.candidates=3"])):
        command(f"pipeline={stage.folder}", f"output_dir={stage.output / name}", "evaluation.episodes=2", *options)
    found = [
        json.loads((stage.output / name / "metrics.json").read_text())["settings"]["sampler"]
        for name in ("saved", "changed")
    ]
    assert found[0] == {**saved, "engine": "torch"}  # what auto stands for in tests
    assert found[1] == found[0] | {"candidates": 3}


def test_a_repetition(stage: SimpleNamespace, command: Callable[..., None], capsys) -> None:
    command(f"pipeline={stage.folder}", "evaluation.episodes=2", "sampler.steps=2")
    record = stage.folder.parent / "evaluation" / "metrics.json"
    command(f"pipeline={stage.folder}", f"repeat={record}")
    assert "Repeated: returns, lengths, costs and feasibility errors equal those of" in capsys.readouterr().out
    again = json.loads((stage.folder.parent / "repeated" / "metrics.json").read_text())
    assert again["settings"] == json.loads(record.read_text())["settings"]
    stage.value = 1.5
    with pytest.raises(SystemExit) as caught:
        command(f"pipeline={stage.folder}", f"repeat={record}", f"output_dir={stage.output}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: repeat: the results differ") and "planner.returns: [1.0, 2.0] there" in error


def test_no_pipeline_folder(tmp_path: Path, command: Callable[..., None], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command(f"pipeline={tmp_path}")
    assert caught.value.code == 2
    assert "is not a pipeline folder (no model_index.json in it)" in capsys.readouterr().err


def test_a_pipeline_without_an_environment(stage: SimpleNamespace, command: Callable[..., None], capsys) -> None:
    stage.edit_info(stage.folder, environment=None)
    with pytest.raises(SystemExit) as caught:
        command(f"pipeline={stage.folder}")
    assert caught.value.code == 2 and not stage.asked
    assert "environment is missing: it cannot be evaluated; give environment=" in capsys.readouterr().err


FERRY = """
import gymnasium, numpy as np
class Ferry(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(
        {"wind": gymnasium.spaces.Box(-9, 9, (1,)), "place": gymnasium.spaces.Box(-9, 9, (2,))}
    )
    action_space = gymnasium.spaces.Box(-3, 3, (2,))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}
    def seen(self):
        return {"wind": self.np_random.normal(size=1), "place": np.zeros(2)}
    def step(self, action):
        self.time += 1
        return self.seen(), float(np.abs(action).max()), False, self.time == 3, {"cost": 2.0}
"""


@pytest.mark.slow
def test_an_environment_of_ones_own(
    tmp_path: Path, make_folder, make_pipeline, command: Callable[..., None], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no state that could be restored, so plans are not compared with it. A file alone never makes it."""
    (tmp_path / "own_ferry.py").write_text(FERRY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards
    stored = {"kind": "user", "factory": "own_ferry:Ferry"}
    info = {"task": "ferry", "data": "abc", "environment": stored}
    folder = make_folder(tmp_path / "pipeline", pipeline=make_pipeline(info=info, sampler={"steps": 2}))
    options = [f"pipeline={folder}", "evaluation.episodes=2", "evaluation.probe_every=1", "processes=1"]
    options += ["evaluation.methods=[random,mpdiffuser]", "evaluation.parallel_controllers=1"]
    ferry = "environment=own_ferry:Ferry"
    command(*options, ferry)
    assert "note: plans are not compared with the simulator" in capsys.readouterr().out
    file = tmp_path / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    assert metrics["settings"]["environment"] == "own_ferry:Ferry"
    for method in metrics["methods"].values():
        assert method["lengths"] == [3, 3] and method["costs"] == [6.0, 6.0] and "feasibility" not in method
    assert max(metrics["methods"]["random"]["returns"]) > 3  # of the environment's range, not of [-1, 1]
    command(*options, ferry, f"repeat={file}")
    for words, given in (
        ("info.environment: is the user's own, 'own_ferry:Ferry'; code that a file names is never run", []),
        (f"{file}: of environment=own_ferry:Ferry, found Hopper-v4", [f"repeat={file}", "environment=Hopper-v4"]),
        ("environment: actions (3,), but the pipeline", ["environment=Hopper-v4", f"output_dir={tmp_path / 'other'}"]),
        ("metrics.json: of another evaluation (settings.environment: ", ["environment=Hopper-v4"]),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            command(*options, *given)
        assert words in capsys.readouterr().err
