"""Every benchmark runs, and reports its costs beside the limit; the times themselves are not checked."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.common import cell, rates, table, timed
from benchmarks.limits import work
from benchmarks.planning import level_work, states_pipeline
from benchmarks.scaling import exponent

pytestmark = pytest.mark.slow  # make quick leaves evidence and drills out

COLUMNS = {
    "limits": "rate",
    "planning": "times the bound",
    "training": "times the bound",
    "rendering": "times the bound",
    "encoding": "times the bound",
    "loading": "times the bound",
    "scaling": "exponent",
}


@pytest.mark.parametrize("name", [*list(COLUMNS)[:-1], pytest.param("scaling", marks=pytest.mark.slow)])
def test_each_runs_and_writes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--folder", str(tmp_path)])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["machine"]["threads"] == 1 and found["machine"]["versions"]["torch"]
    assert found["limits"]["best_gflops"] > 0 and found["limits"]["copy_gb_s"] > 0
    assert any(row.get(COLUMNS[name]) is not None for row in found["rows"])
    assert f" {COLUMNS[name]} |" in capsys.readouterr().out.partition("|---")[0]


def test_work_is_counted_by_hand() -> None:
    assert work(nn.Linear(3, 5), torch.zeros(7, 3)) == 2 * 7 * 3 * 5
    convolution = nn.Conv1d(4, 6, 5, padding=2)
    assert work(convolution, torch.zeros(2, 4, 8)) == 2 * 2 * 4 * 6 * 5 * 8
    pipeline = states_pipeline("small")
    planner, dynamics = (work(model, *model.example()) / 2 for model in (pipeline.planner, pipeline.dynamics))
    assert level_work(pipeline, 1.0) == planner + dynamics
    assert level_work(pipeline, 2.0) == 2 * planner + dynamics


def test_timings_and_tables() -> None:
    calls: list[int] = []
    found = timed(lambda: calls.append(1), repeats=10, seconds=0)
    assert found["repeats"] == 3 and len(calls) == 4  # one warms up
    assert found["cpu_ms_best"] <= found["cpu_ms_low"] <= found["cpu_ms"] <= found["cpu_ms_high"]
    row = {"name": "a", "ms": 2.0, "ms_low": 1.0, "ms_high": 3.0, "ms_best": 0.5}
    assert table([row, {"other": 4}]).splitlines()[2:] == ["| a | 2 [1, 3] |  |", "|  |  | 4 |"]
    assert cell(1234.5678) == "1235"


def test_rates_and_bounds() -> None:
    found = rates({"cpu_ms": 4.0, "wall_ms": 9.0}, "frames", 2, 1.0)
    assert found["frames a second of a core"] == 500 and found["times the bound"] == 4


def test_the_exponent_of_a_power() -> None:
    assert exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
