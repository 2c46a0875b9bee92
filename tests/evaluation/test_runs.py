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


def write(
    folder: Path, seed: int, horizon: int = 16, task: str = "reacher_easy", methods: Any = METHODS, **more: Any
) -> None:
    """A training whose returns follow from seed and horizon; `more` are entries of metrics.json."""
    random = np.random.default_rng([seed, horizon])
    results = {}
    for method in methods:
        returns = random.normal(500 + horizon, 30, EPISODES).tolist()
        results[method] = {"returns": returns, **summary(returns), "score": {"mean": returns[0]}}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"task": task, "methods": results, **more}))
    (folder / "config.yaml").write_text(f"seed: {seed}\nhorizon: {horizon}\noutput_dir: {folder}\n")
    (folder / "planner").mkdir()
    lines = [{"step": step, "validation_loss": 1 / step} for step in (1, 10, 20)]
    (folder / "planner" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


def printed(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The cells of each line of the comparison."""
    assert main(list(map(str, folders))) == 0
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in capsys.readouterr().out.splitlines()
    ]


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
    assert cells[0] == ["method", "runs", "return", "+-runs", "+-episodes", "score", "minus planner"]
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


def test_the_interval_needs_five_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(5):
        write(tmp_path / f"run{seed}", seed)
    folders = sorted(tmp_path.iterdir())
    _, head, cloning, _ = printed(folders, capsys)
    means = [float(np.mean(returns(folder, "cloning"))) for folder in folders]
    expected = summary(means)
    assert head[5:7] == ["IQM", "95 % interval"] and cloning[5] == f"{expected['iqm']:.1f}"
    assert cloning[6] == "[{:.1f}, {:.1f}]".format(*expected["iqm_interval"])


def test_evaluations_of_other_pipelines_and_other_data_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, pipeline in (("a", "1111"), ("b", "2222")):
        write(tmp_path / name / "evaluation", 0, settings={"episodes": 6, "sampler": {"steps": 2}}, pipeline=pipeline)
        (tmp_path / name / "evaluation" / "config.yaml").unlink()
    lines = printed([tmp_path / "a" / "evaluation", tmp_path / "b" / "evaluation"], capsys)
    names = [line[:2] for line in lines[2:]]
    assert ["planner (pipeline=1111)", "1"] in names and ["planner (pipeline=2222)", "1"] in names
    for name in ("e", "f"):  # own data: the run's folder stands for the task
        write(tmp_path / name / "evaluation", 0, task=name, data="1" * 8, pipeline=name, settings={"episodes": 6})
        (tmp_path / name / "evaluation" / "config.yaml").unlink()
    lines = printed([tmp_path / "e" / "evaluation", tmp_path / "f" / "evaluation"], capsys)
    assert sum(line[0] == "method" for line in lines if line) == 1
    for name, data in (("c", "33333333"), ("d", "44444444")):
        write(tmp_path / name, 0, data=data)
    names = [line[:2] for line in printed([tmp_path / "c", tmp_path / "d"], capsys)[2:]]
    assert ["planner (data=33333333)", "1"] in names and ["planner (data=44444444)", "1"] in names


def test_long_names_give_way_to_different_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, horizon in (("a", 8), ("b", 16), ("c", 32)):
        write(tmp_path / name / "run", 0, horizon)
        with open(tmp_path / name / "run" / "config.yaml", "a") as file:
            file.write(f"something_with_a_long_name_that_fills_the_line: {horizon}\n")
    lines = printed([tmp_path / name / "run" for name in "abc"], capsys)
    assert [line[0] for line in lines if line[0].startswith("planner")] == [f"planner ({name}/run)" for name in "abc"]


def test_stand_ins_are_told_and_costs_shown_within_their_limit(tmp_path: Path, capsys) -> None:
    for seed in range(2):
        write(tmp_path / f"run{seed}", seed, methods=["planner", "planner within 20", "mpdiffuser within 20"])
        file = tmp_path / f"run{seed}" / "metrics.json"
        metrics = json.loads(file.read_text()) | {"suite": "dsrl", "stand_in": True}
        for row, method in metrics["methods"].items():
            limit = 20.0 if "within" in row else None
            method |= {"cost": {"mean": 15.0}, "share_within_limit": {"20": 0.9}, "limit": limit}
            method |= {"normalised_cost": {"20": 0.75}}
        file.write_text(json.dumps(metrics))
    folders = sorted(tmp_path.iterdir())
    lines = printed(folders, capsys)
    rows = {line[0]: line for line in lines}
    assert lines[1][-3:] == ["cost", "within", "minus planner"] and rows["planner"][-3:] == ["15.0", "-", "-"]
    gaps = [
        np.mean(np.subtract(returns(folder, "mpdiffuser within 20"), returns(folder, "planner within 20")))
        for folder in folders
    ]
    assert rows["mpdiffuser within 20"][-3:] == ["15.0", "90%", f"{np.mean(gaps):+.1f} +-{stats.sem(gaps):.1f}"]
    assert any("no number here is a DSRL result" in line[0] for line in lines)


@pytest.mark.parametrize("content", [b"a: [1", b"[1, 2]", b"\xff\xfe", b"- 3"])
def test_a_damaged_configuration_is_named(tmp_path: Path, capsys, content: bytes) -> None:
    write(tmp_path / "run", 0)
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    assert main([str(tmp_path / "run")]) == 2
    assert f"{tmp_path}/run/config.yaml: cannot be read" in capsys.readouterr().err


def test_other_numbers_of_episodes_are_not_paired(tmp_path: Path, capsys) -> None:
    write(tmp_path / "run", 0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    metrics["methods"]["cloning"]["returns"].pop()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    lines = printed([tmp_path / "run"], capsys)
    assert "minus planner" not in lines[1] and len(lines) == 4
