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
    assert "environment is missing: it cannot be evaluated in an environment" in capsys.readouterr().err
