"""Score against training time: the tables from cells, and two points of a tiny run."""

from pathlib import Path
from typing import Any

import pytest

from experiments import curves, offline_table
from experiments.curves import page, read_curves
from experiments.offline_table import cells_text

TASK = "hopper-medium-v2"


def a_cell(mean: float) -> dict[str, Any]:
    score = {"mean": mean, "standard_error": 1.0, "iqm_interval": [mean - 2, mean + 2]}
    return {
        "machine": {"cpu": "CPU"},
        "stand_in": False,
        "behaviour": 50.0,
        "score": score,
        "core_minutes": {"planner": 5.0},
    }


def test_the_page_has_a_column_for_each_time_and_gaps_for_what_was_not_trained(tmp_path: Path) -> None:
    (tmp_path / "20.json").write_text(cells_text({TASK: {"planner": {"0": a_cell(80), "1": a_cell(84)}}}))
    short = {"planner": {"0": a_cell(70)}, "iql": {"0": a_cell(10)}}
    (tmp_path / "6.json").write_text(cells_text({TASK: short, "halfcheetah-medium-v2": short}))
    found = read_curves(tmp_path)
    assert curves.tasks_of(found) == [TASK]  # the other has one point
    assert len(curves.tasks_of({6.0: found[6.0]})) == 2
    assert list(found) == [6, 20]
    text = page(found)
    assert "| method | 6 | 20 | settings from |" in text and "behaviour: 50.0" in text and "stand-ins" not in text
    assert "| planner | 70.0 ± 1.0 [68.0, 72.0] | 82.0 ± 2.0 (2 seeds) | [ablations](decisions.md) |" in text
    assert "| iql | 10.0 ± 1.0 [8.0, 12.0] |  |" in text and "mpdiffuser |" not in text
    curves.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_points_are_trainings_of_their_own_and_are_kept(
    hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline_table, "TRIAL", 20)
    arguments = [
        "--data-dir",
        str(hopper_data),
        "--tasks",
        TASK,
        "--methods",
        "cloning",
        "--cells",
        str(tmp_path / "c"),
    ]
    arguments += ["--folder", str(tmp_path / "runs"), "--page", str(tmp_path / "curves.md")]
    arguments += ["--set", "evaluation.episodes=2"]
    curves.main([*arguments, "--core-minutes", "0.01", "0.02"])
    found = read_curves(tmp_path / "c")
    steps = [found[minutes][TASK]["cloning"]["0"]["steps"]["cloning"] for minutes in (0.01, 0.02)]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)
    before = (tmp_path / "c" / "0.01.json").read_text()
    curves.main([*arguments, "--core-minutes", "0.01"])
    assert (tmp_path / "c" / "0.01.json").read_text() == before
    assert "| method | 0.01 | 0.02 | settings from |" in (tmp_path / "curves.md").read_text()
