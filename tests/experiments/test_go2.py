"""The Go2: what it is asked for, slow plans, and the command on a tiny training."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from envs.datasets import making
from envs.datasets.making import CLEAN, DISTURBED, Walks
from envs.go2 import FORWARDS, NAMES, TURNING
from experiments import go2
from experiments.go2 import Wish
from mpdiffuser.config import load


def test_the_reward_of_a_wish() -> None:
    observations = torch.zeros(3, len(NAMES))
    observations[:, FORWARDS] = torch.tensor([0.5, 1.5, 0.5])
    observations[:, FORWARDS + 1] = torch.tensor([0.0, 0.0, -0.4])
    observations[:, TURNING] = torch.tensor([0.3, 0.3, 0.5])
    found = Wish(0.5, 0.3).objective()(observations, torch.zeros(3, 12))
    assert found.tolist() == pytest.approx([0.0, -1.0, -0.2])
    assert [str(wish) for wish in go2.WISHES] == ["0.5 m/s", "1 m/s", "0.75 m/s, turning 0.5 rad/s"]


def test_cells_are_over_all_episodes_of_all_seeds() -> None:
    seeds = [
        {"speed": [1.0, 2.0], "turn": [0.0, 0.0], "fell": [0.0, 1.0]},
        {"speed": [3.0], "turn": [0.3], "fell": [0]},
    ]
    assert go2._cells(seeds) == ["2.00 ± 0.58", "0.10 ± 0.10", "33 %"]


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(making, "STEPS", 30)
    for name, value in (("PLAYED", 120), ("PLAYERS", 2), ("FILMED", 40)):
        monkeypatch.setattr(go2, name, value)
    monkeypatch.setattr(go2, "WISHES", (Wish(0.5), Wish(1.0, 0.5)))
    monkeypatch.setattr(go2, "BODIES", {"payload of 3 kg": {"payload": 3.0}})
    monkeypatch.setitem(making.MAKERS, "go2/walk", Walks(10, CLEAN))
    monkeypatch.setitem(making.MAKERS, "go2/disturbed", Walks(10, DISTURBED))
    monkeypatch.setattr(go2, "load", lambda name, words: load(name, [*words, "dynamics.steps=20"]))  # of adapt.py
    options = ["sampler.engine=torch", "sampler.steps=2", "rounds=1", "horizon=8", "ranker.hidden=16", "validation=0.3"]
    options += [f"{model}.{option}" for model in ("planner", "dynamics") for option in ("width=8", "multipliers=[1,2]")]
    options += [f"train.{model}.steps=3" for model in ("cloning", "ranker", "planner", "dynamics", "forward")]
    arguments = ["--seeds", "0", "--episodes", "2", "--steps", "4", "--real-time", "0.4"]
    arguments += ["--folder", str(tmp_path / "runs"), "--page", str(tmp_path / "go2.md")]
    arguments += ["--film", str(tmp_path / "go2.webp"), "--set", *options]
    go2.main(arguments)
    lines = (tmp_path / "go2.md").read_text().splitlines()
    assert sum(line.startswith("| 0.5 m/s | ") for line in lines) == 5
    assert [line.split(" | ")[1] for line in lines if line.startswith("| payload")] == ["before", "after"]
    own, slow = (
        [cell.strip() for cell in line.split("|")] for line in lines if " as they are " in line or " slowed " in line
    )
    assert own[2] == slow[2] == "20" and float(slow[7]) >= 50 > float(own[7])
    film = np.stack([*imageio.imiter(tmp_path / "go2.webp")])  # (T, h, w, 3): three panels side by side
    assert len(film) == 10 and film.shape[2] > 2 * film.shape[1]
    assert all(np.ptp(film[:, :, left : left + 100].astype(int), axis=0).max() > 20 for left in (20, 164, 308))
    capsys.readouterr()
    go2.main(arguments)  # reuses the results
    assert "step" not in capsys.readouterr().err
    assert np.isfinite(float(own[7]))
