"""Every benchmark runs, and reports its costs beside the limit; the times themselves are not checked."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import gpu
from benchmarks.common import cell, rates, table, timed
from benchmarks.limits import work
from benchmarks.planning import level_work, states_pipeline
from benchmarks.scaling import exponent
from experiments.untrained import random_episodes
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig
from mpdiffuser.windows import Steps

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


def test_the_gpus_runs_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(["--quick", "--folder", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["limits"]["device"] == "CPU" and found["limits"]["tf32_tflops"] > 0
    models = {row["model"]: row for row in found["rows"] if "model" in row}
    assert {"forward", "ranker", "dynamics", "planner"} <= set(models) and models["planner"]["steps"] == 50
    assert [row["composition"] for row in found["rows"] if "score" in row] == ["planner", "fused"]
    assert any(row.get("plan, candidates") == 64 and row["times the bound"] > 0 for row in found["rows"])


def test_the_gpus_loop_trains() -> None:
    """With rewards that are the state's first entry, the ranker learns them: far better than their mean does."""
    torch.manual_seed(0)
    episodes, device = random_episodes(8, 50, 4, 2), torch.device("cpu")
    episodes.arrays["rewards"] = np.array(episodes["observations"][:, 0])
    data = gpu.on_device(Steps(episodes, np.zeros(len(episodes["rewards"]), np.float32)), device)
    model = Ranker(4, 2, hidden=32)
    config = TrainConfig(steps=400, batch_size=64, learning_rate=3e-3, warmup=0, ema_decay=0.9)
    loop = gpu.Loop(model, data, data, config, NoiseSchedule(), device)
    loop.train()
    assert loop.steps_done == 400 and loop.losses[-1][1] < 0.3 * loop.losses[0][1]
    assert not model.training


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
