"""The table of the D4RL tasks: its cells, its tables, and two cells of a tiny run."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import offline_table
from experiments.offline_table import SHARES, cells_text, page, read_cells, score
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS

TASK = "hopper-medium-v2"


def a_cell(mean: float, shares: dict[str, float]) -> dict[str, Any]:
    return {
        "machine": {"cpu": "CPU"},
        "stand_in": True,
        "seeds": [7, 8],
        "behaviour": 50.0,
        "core_minutes": dict.fromkeys(shares, 2.0),
        "plan_ms_single": {"median": 3.0},
        "score": {"mean": mean, "standard_error": 1.0, "iqm_interval": [mean - 2, mean + 2]},
    }


def test_every_share_is_of_a_model_that_the_method_trains() -> None:
    for method, shares in SHARES.items():
        assert set(shares) == {recipe.name for recipe in METHODS[method].models if recipe.train is not None}
        assert sum(shares.values()) == pytest.approx(0.86 if method == "planner" else 1)


def test_cells_are_kept_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    assert read_cells(file) == {}
    cells = {"a": {"x": {"0": {"v": [1, 2]}, "1": {"v": 3}}, "y": {"0": {"v": 4}}}, "b": {"x": {"2": {"v": 5}}}}
    file.write_text(cells_text(cells))
    assert read_cells(file) == cells
    assert '   "0": {"v": [1, 2]},\n' in file.read_text()


def test_the_page() -> None:
    planner, both = SHARES["planner"], SHARES["mpdiffuser"]
    cells = {
        TASK: {"planner": {"0": a_cell(90, planner)}, "mpdiffuser": {"0": a_cell(80, both), "1": a_cell(84, both)}},
        "halfcheetah-medium-v2": {"mpdiffuser": {"0": a_cell(40, both)}},
    }
    text = page(cells, 6.0)
    assert "| behaviour | 50.0 | 50.0 | 50.0 |" in text
    assert "| planner | 90.0 ± 1.0 [88.0, 92.0] |  |  |" in text
    assert "| mpdiffuser | 82.0 ± 2.0 (2 seeds) | 40.0 ± 1.0 [38.0, 42.0] | 61.0 |" in text
    assert "| planner | 6.0 [6.0, 6.0] | planner 70%, forward 1%, ranker 15% | 3 | [ablations](decisions.md) |" in text
    assert "measured on CPU" in text and "The data are stand-ins" in text and "Seeds of the episodes: 7 to 8" in text
    assert score([]) == ""


@pytest.mark.slow
def test_two_methods_on_the_same_models(hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_table, "TRIAL", 20)
    cells, chosen = tmp_path / "0.01.json", ["rounds=2", "evaluation.episodes=2", "ranker.hidden=16"]
    chosen += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
    arguments = ["--data-dir", str(hopper_data), "--tasks", TASK, "--methods", "mpdiffuser", "planner"]
    arguments += ["--folder", str(tmp_path / "runs"), "--cells", str(tmp_path), "--page", str(tmp_path / "offline.md")]
    arguments += ["--set", *chosen]
    offline_table.main([*arguments, "--core-minutes", "0.01"])
    found = read_cells(cells)[TASK]
    assert set(found) == {"mpdiffuser", "planner"}
    assert found["planner"]["0"]["steps"].items() <= found["mpdiffuser"]["0"]["steps"].items()
    assert found["planner"]["0"]["core_minutes"].keys() == SHARES["planner"].keys()
    seconds = json.loads((tmp_path / "runs/speed/hopper-mpdiffuser.json").read_text())
    assert found["planner"]["0"]["steps"]["planner"] == max(
        1, round(0.6 * SHARES["planner"]["planner"] / seconds["planner"])
    )
    assert len(found["planner"]["0"]["returns"]) == 2 and found["planner"]["0"]["stand_in"]
    assert not (tmp_path / "runs" / "runs" / "0.01" / TASK / "planner-0" / "pipeline").exists()
    assert "| planner | " in (tmp_path / "offline.md").read_text()
    before = cells.read_text()
    offline_table.main([*arguments, "--core-minutes", "0.01"])  # reuses both cells
    assert cells.read_text() == before and json.loads(before)
    with pytest.raises(InputError, match="mpdiffuser, seed 0: made with other settings; choose another --cells"):
        offline_table.main([*arguments, "rounds=1", "--core-minutes", "0.01"])
    arguments[arguments.index("--cells") + 1] = str(tmp_path / "cells")
    with pytest.raises(InputError, match=r"speed/hopper-mpdiffuser.json: made with other settings"):
        offline_table.main([*arguments, "rounds=1", "--core-minutes", "0.01"])
