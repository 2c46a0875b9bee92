"""Mazes: which rows learn from what, the page, and the command at tiny size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.datasets.maze2d import Maze2DData
from experiments import mazes, offline_table
from experiments.mazes import MAZE2D, POINTMAZE, PUBLISHED, ROWS, folder_of, page, short, tasks_of
from mpdiffuser.config import load
from mpdiffuser.errors import InputError


def a_cell(mean: float) -> dict[str, Any]:
    score = {"mean": mean, "standard_error": 1.0, "iqm_interval": [mean - 2, mean + 2]}
    return {"machine": {"cpu": "CPU"}, "stand_in": True, "seeds": [1000], "behaviour": 7.0, "score": score}


def test_rows_have_options_that_are_allowed_and_pointmaze_only_those_with_goals() -> None:
    for row in ROWS.values():
        load("state", [f"task={MAZE2D[0]}", f"method={row.method}", *row.options])
    told = [name for name, row in ROWS.items() if POINTMAZE[0] in tasks_of(row, POINTMAZE)]
    assert told == ["planner only, every decision", "planner only", "MPDiffuser"]
    folders = {name: folder_of(Path("x"), row) for name, row in ROWS.items()}
    assert folders["planner only"] == folders["MPDiffuser"] != folders["planner only, every decision"]


def test_the_page_has_gaps_where_there_are_no_rewards() -> None:
    tasks = [MAZE2D[1], POINTMAZE[0]]
    results = {"cloning": {tasks[0]: [a_cell(5)]}, "MPDiffuser": {tasks[0]: [a_cell(60)], tasks[1]: [a_cell(80)]}}
    lines = page(results, tasks, 6.0).splitlines()
    assert "| method | maze2d-medium | pointmaze-medium-navigate | settings from |" in lines
    assert "| cloning | 5.0 ± 1.0 [3.0, 7.0] |  | [trials](trials.md) |" in lines
    assert "| MPDiffuser | 60.0 ± 1.0 [58.0, 62.0] | 80.0 ± 1.0 [78.0, 82.0] | [ablations](decisions.md) |" in lines
    assert "| Diffusion Veteran, published | 150.7 |  |  |" in lines and "| the data | 7.0 |  |  |" in lines
    assert {len(scores) for scores in PUBLISHED.values()} == {len(MAZE2D), len(POINTMAZE)}
    assert "| cloning | 5.0 ± 1.0 [3.0, 7.0] |  | [trials](trials.md) |" in page(
        {"cloning": results["cloning"]}, tasks, 6.0
    )
    assert [short(task) for task in (MAZE2D[0], POINTMAZE[1])] == ["maze2d-umaze", "pointmaze-large-navigate"]


def test_rows_that_can_learn_none_of_the_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="--rows: none of cloning, IQL can learn --tasks, which have no rewards"):
        mazes.main(["--tasks", *POINTMAZE, "--rows", "cloning", "IQL"])


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_table, "TRIAL", 20)
    Maze2DData("umaze", "sparse", rows=3000).write(tmp_path / "maze2d-umaze-v1.hdf5", seed=0)
    arguments = ["--data-dir", str(tmp_path), "--tasks", MAZE2D[0], "--rows", "cloning", "MPDiffuser"]
    arguments += ["--folder", str(tmp_path / "runs"), "--page", str(tmp_path / "mazes.md"), "--core-minutes", "0.005"]
    arguments += ["--results", str(tmp_path / "results")]
    small = [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
    arguments += ["--set", "evaluation.episodes=2", "evaluation.max_decisions=30", "sampler.steps=2", *small]
    mazes.main(arguments)
    text, one = (tmp_path / "mazes.md").read_text(), arguments.index("cloning")
    mazes.main([*arguments[:one], *arguments[one + 1 :]])  # the page has what was measured before too
    assert (tmp_path / "mazes.md").read_text() == text
    rows = [line.split(" | ")[0] for line in (tmp_path / "mazes.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[1:3] == ["| cloning", "| MPDiffuser"] and rows[-1] == "| the data"
    assert (tmp_path / "mazes.png").stat().st_size > 1000
    folder = folder_of(tmp_path / "runs", ROWS["MPDiffuser"]) / "runs" / "0.005" / MAZE2D[0] / "mpdiffuser-0"
    places, plans = mazes.walk(folder / "pipeline", range(3), 25)
    assert places.shape == (26, 3, 2) and [plan.shape for plan in plans] == [(3, 32, 2)] * 2
    np.testing.assert_allclose(plans[0][:, 0], places[0], atol=1e-3)  # plans begin where the ball is
    with pytest.raises(InputError, match="made with other settings"):
        mazes.main([*arguments, "evaluation.episodes=3"])
