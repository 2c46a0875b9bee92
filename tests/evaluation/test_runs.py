"""Finished runs compared: which are averaged, the errors over runs and episodes, and the figure."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from scipy import stats

from evaluation.runs import main
from evaluation.statistics import summary

EPISODES = 6


METHODS = ("cloning", "planner")


def write(folder: Path, seed: int, horizon: int = 16, task: str = "reacher_easy", methods: Any = METHODS) -> None:
    """A run whose returns follow from seed and horizon."""
    random = np.random.default_rng([seed, horizon])
    results = {}
    for method in methods:
        returns = random.normal(500 + horizon, 30, EPISODES).tolist()
        results[method] = {"returns": returns, **summary(returns), "score": {"mean": returns[0]}}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"task": task, "methods": results}))
    (folder / "config.yaml").write_text(f"seed: {seed}\nhorizon: {horizon}\noutput_dir: {folder}\n")
    (folder / "planner").mkdir()
    lines = [{"step": step, "validation_loss": 1 / step} for step in (1, 10, 20)]
    (folder / "planner" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


def returns(folder: Path, method: str) -> list[float]:
    return json.loads((folder / "metrics.json").read_text())["methods"][method]["returns"]


def test_seeds_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / f"run{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        write(folder, seed)
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reacher_easy: 3 runs, 6 episodes each"
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:4]]
    assert cells[0][:5] == ["method", "runs", "return", "+-runs", "+-episodes"] and cells[0][-1] == "minus planner"
    means = np.array([np.mean(returns(folder, "cloning")) for folder in folders])
    within = np.mean([stats.sem(returns(folder, "cloning")) for folder in folders])
    assert cells[1][:5] == ["cloning", "3", f"{means.mean():.1f}", f"{stats.sem(means):.1f}", f"{within:.1f}"]
    gaps = [np.mean(np.subtract(returns(folder, "cloning"), returns(folder, "planner"))) for folder in folders]
    assert cells[1][-1] == f"{np.mean(gaps):+.1f} +-{stats.sem(gaps):.1f}" and cells[2][-1] == "-"
    assert (tmp_path / "out" / "comparison.txt").read_text().splitlines() == lines[:4]
    picture = imageio.imread(tmp_path / "out" / "comparison.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 3


def test_other_options_have_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for horizon in (8, 16):
        for seed in (0, 1):
            write(tmp_path / f"{horizon}-{seed}", seed, horizon)
    write(tmp_path / "another", 0, task="walker_walk", methods=("planner",))
    assert main([str(folder) for folder in sorted(tmp_path.iterdir())]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if " episodes each" in line]
    assert heads == ["reacher_easy: 4 runs, 6 episodes each", "walker_walk: 1 run, 6 episodes each"]
    names = [line.split("  ")[0] for line in lines if line.startswith(("cloning", "planner"))]
    assert names == [
        *("cloning (horizon=16)", "planner (horizon=16)", "cloning (horizon=8)", "planner (horizon=8)"),
        "planner",
    ]


def test_wrong_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path}/metrics.json: not found; evaluate first" in capsys.readouterr().err
    write(tmp_path / "run", 0)
    assert main([str(tmp_path / "run"), str(tmp_path / "run" / "..") + "/run"]) == 2
    assert "is given twice" in capsys.readouterr().err
    (tmp_path / "run" / "metrics.json").write_text('{"methods": {"planner": {"returns": [], "mean": 0}}}')
    assert main([str(tmp_path / "run")]) == 2
    assert "methods.planner.returns must be a list of numbers" in capsys.readouterr().err
