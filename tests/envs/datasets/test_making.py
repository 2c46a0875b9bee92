"""Datasets that are made: the walker follows its command, and the same seed gives the same bytes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from envs.datasets import OFFLINE_TASKS, making
from envs.datasets.__main__ import main
from envs.datasets.making import DISTURBED, Walker, Walks, make_dataset
from envs.go2 import FORWARDS, TURNING
from envs.robots import Robots, stacked
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError


def test_the_walker_follows_its_command() -> None:
    commands = np.array([[1.0, 0, 0], [1.0, 0, 0.8], [0.5, 0, 0]])
    found = Robots({"kind": "go2"}, 3).run(Walker(commands), [0, 1, 2], steps=200)
    late = np.stack([stacked(one["observations"])[100:].mean(0) for one in found])
    assert not any(one["terminated"] for one in found)
    np.testing.assert_allclose(late[:, FORWARDS], [0.9, 0.8, 0.43], atol=0.1)
    assert late[1, TURNING] - late[0, TURNING] == pytest.approx(0.8, abs=0.3)


def test_the_same_seed_gives_the_same_episodes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(making, "STEPS", 12)
    monkeypatch.setitem(making.MAKERS, "go2/disturbed", Walks(10, DISTURBED))
    monkeypatch.setattr(sys, "argv", ["datasets", "make", "go2/disturbed", str(tmp_path / "first"), "--seed", "4"])
    assert main() == 0
    assert "10, steps 120" in capsys.readouterr().out
    first = Episodes.load(tmp_path / "first")
    assert first.info["environment"] == {"kind": "go2"} and first.info["decision_seconds"] == 0.02
    for seed, name in ((4, "again"), (5, "other")):
        make_dataset("go2/disturbed", tmp_path / name, seed)
    assert first.checksum() == Episodes.load(tmp_path / "again").checksum()
    assert first.checksum() != Episodes.load(tmp_path / "other").checksum()
    np.testing.assert_array_equal(first["observations"][1, -12:], first["actions"][0])
    assert main() == 2 and "exists already" in capsys.readouterr().err


def test_what_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"go2/run: cannot be made here; these can: go2/walk, go2/disturbed"):
        make_dataset("go2/run", tmp_path / "data")
    (tmp_path / "mine.npz").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.npz: exists already; choose another path or remove it"):
        make_dataset("ogbench/pointmaze-medium-navigate-v0", tmp_path / "mine.npz")
    with pytest.raises(InputError, match="go2/walk: --rendering is for V-D4RL"):
        make_dataset("go2/walk", tmp_path / "data", rendering="full")
    with pytest.raises(InputError, match="go2/walk: --episodes is for the datasets of sampling MPC only, mppi/TASK"):
        make_dataset("go2/walk", tmp_path / "data", episodes=5)
    with pytest.raises(InputError, match="--episodes: must be at least 1, found 0"):
        make_dataset("mppi/quadruped_walk", tmp_path / "data", episodes=0)


def test_tasks_say_whether_they_can_be_made() -> None:
    tasks = OFFLINE_TASKS.values()
    assert {task.id for task in tasks if task.can_be_made} == {task.id for task in tasks} & making.MAKERS.keys()
