"""V-D4RL made again: a run at tiny size, and the table."""

from pathlib import Path

import numpy as np
import pytest

from envs.datasets import episode_files
from envs.datasets.making import MAKERS
from envs.datasets.vd4rl import VD4RL
from experiments import end_to_end, vd4rl
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json


def test_a_run_and_its_row(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setitem(MAKERS, "vd4rl/walker_walk-random", VD4RL("walker_walk", "random", 2))
    monkeypatch.setattr(episode_files, "available_cores", lambda: 1)
    monkeypatch.setattr(vd4rl, "METHODS", {"cloning": "cloning"})
    monkeypatch.setattr(vd4rl, "COLUMNS", ("dataset", "agents", "cloning", "end to end", "published", "minutes"))
    monkeypatch.setitem(end_to_end.TRAINING, "batch_size", 4)
    options = ["sampler.engine=torch", "debug=true", "evaluation.max_decisions=20"]
    page, folder = tmp_path / "vd4rl.md", tmp_path / "runs"
    arguments = ["--tasks", "walker_walk", "--kinds", "random", "--folder", str(folder), "--page", str(page)]
    arguments += ["--end-to-end", "random", "--end-to-end-steps", "2"]
    vd4rl.main([*arguments, "--set", *options])
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| walker_walk-random |")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1] == "" and cells[4] == "28.7" and len(cells) == len(vd4rl.COLUMNS)
    assert "±" in cells[2] and "±" in cells[3]
    capfd.readouterr()
    vd4rl.main([*arguments, "--set", *options])  # all is there
    assert "step" not in capfd.readouterr().err
    assert float(cells[-1]) >= 0 and read_json(folder / "walker_walk-random-0" / "measured.json")["core_seconds"]
    with pytest.raises(InputError, match=r"measured.json: made with other settings; choose another --folder"):
        vd4rl.main([*arguments, "--set", *options, "horizon=8"])


def test_the_scores_are_a_tenth_of_the_return() -> None:
    methods = {name: {"returns": [100.0, 200.0]} for name in vd4rl.METHODS}
    agents = {"medium": {"return_mean": 412.0}, "expert": {"return_mean": 951.2}}
    found = {"methods": methods, "seeds": [0, 1], "core_seconds": {"planner": 60.0}, "about": {"agents": agents}}
    text = vd4rl.page({("cheetah_run", "medium_expert"): [found, found]}, [0, 1])
    line = text.splitlines()[-1]
    cells = ["cheetah_run-medium_expert", "41.2, 95.1", *["15.0 ± 5.0, 15.0 ± 5.0"] * 5, "", "62.7", "1, 1"]
    assert line == "| " + " | ".join(cells) + " |"
    assert np.isclose(vd4rl.PUBLISHED["walker_walk"]["medium_expert"], 97.4)
