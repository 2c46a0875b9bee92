"""More data for the dynamics model: what is shared, what is compared, and the whole command at the smallest size."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import off_the_path
from experiments.hearing import best_weight, known
from experiments.study import SAME, difference
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.denoisers import Dynamics

TINY = ["rounds=1", "horizon=8", "ranker.hidden=16", "validation=0.3"]
TINY += [f"{model}.{option}" for model in ("planner", "dynamics") for option in ("width=8", "multipliers=[1,2]")]
TINY += [f"train.{model}.steps=3" for model in ("cloning", "ranker", "planner", "dynamics", "forward")]


def test_differences_are_paired() -> None:
    assert difference([[3.0, 4.0], [9.0]], [[1.0, 2.0], [7.0]]) == "+2 ± 0"
    assert difference([[1.0, 5.0]], [[1.0, 1.0]]) == "+2 ± 2"


@pytest.mark.parametrize("weight", [-0.4, 0.0, 0.7])
def test_the_best_weight(weight: float) -> None:
    """Of a term that explains a known part of what is missed."""
    term, rest = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    rest -= (rest * term).sum() / term.square().sum() * term  # nothing of it is along the term
    found = best_weight(weight * term + rest, term)
    size, left = float(term.square().sum()), float(rest.square().sum())
    assert found["weight"] == pytest.approx(weight, abs=1e-5)
    assert found["planner"] == pytest.approx(left + weight**2 * size, rel=1e-4)
    assert found["heard"] == pytest.approx(left + (1 - weight) ** 2 * size, rel=1e-4)


def test_what_the_models_know(make_pipeline: Any, make_episodes: Any, randomize: Any) -> None:
    pipeline, episodes = make_pipeline(3, 2, levels=100), make_episodes([30, 20])
    size = pipeline.planner.config["horizon"]
    pipeline.register_modules(dynamics=randomize(Dynamics(3, 2, size, width=8, embedding=8, hears=True)))
    levels = known(pipeline, episodes, 4)
    assert len(levels) == 4 and levels[0]["sigma"] > levels[-1]["sigma"]
    assert all(at[f"{model}_states"] > 0 and at["planner"] > 0 for at in levels for model in ("planner", "dynamics"))
    assert levels == known(pipeline, episodes, 4)


@pytest.mark.slow
def test_the_command(
    hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hopper_data / "hopper-medium.hdf5").rename(hopper_data / "hopper-medium-expert.hdf5")
    task = off_the_path.Task(off_the_path.TASKS["hopper"].options, 0.5, 60)
    monkeypatch.setattr(off_the_path, "TASKS", {"hopper": task})
    monkeypatch.setattr(off_the_path, "DEMONSTRATIONS", 4)
    rows = {off_the_path.FIRST, "cloning", "more data, heard, p = 2", "all in the planner"}
    monkeypatch.setattr(off_the_path, "ROWS", {k: v for k, v in off_the_path.ROWS.items() if k in rows})
    arguments = ["--data-dir", str(hopper_data), "--tasks", "hopper", "--seeds", "0", "--episodes", "2"]
    arguments += ["--folder", str(tmp_path / "runs"), "--page", str(tmp_path / "page.md"), "--set", *TINY]
    off_the_path.main(arguments)
    text = (tmp_path / "page.md").read_text()
    found = re.findall(r"^\| (.*?) \| (-?\d+)", text, re.MULTILINE)
    assert [row for row, _ in found[: len(off_the_path.ROWS)]] == list(off_the_path.ROWS)
    assert "| hopper | 0 | play |" in text
    folder = tmp_path / "runs/hopper-0"
    played = Episodes.load(folder / "play")
    assert played.lengths.sum() >= 60 and "task" in played.info
    weights = [
        (folder / run / "pipeline/planner/diffusion_pytorch_model.safetensors").read_bytes()
        for run in (SAME, "hearing", "pooled")
    ]
    assert weights[0] == weights[1] != weights[2]
    capsys.readouterr()
    off_the_path.main(arguments)  # reuses all
    assert (tmp_path / "page.md").read_text() == text and "step" not in capsys.readouterr().err
