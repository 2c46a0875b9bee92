"""Changed robots: what is changed, that play and control are paired, and the whole command at the smallest size."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train_state
from envs.robots import Robots
from experiments import changed_robots
from experiments.changed_robots import CHANGES
from mpdiffuser.config import load


def model_of(change: str) -> Any:
    return Robots({"kind": "gymnasium", "env_id": "HalfCheetah-v4"}, 1, change=CHANGES[change]).envs[0].model


def test_what_is_changed() -> None:
    nominal = model_of("nothing")
    gears = nominal.actuator_gear[:, 0]
    for change, factors in (("joints x 0.7", [0.7] * 6), ("joints x 0.7, 1.3", [0.7, 1.3] * 3)):
        np.testing.assert_allclose(model_of(change).actuator_gear[:, 0], gears * factors)
    heavier = model_of("torso x 1.5")
    np.testing.assert_allclose(heavier.body_mass[1], 1.5 * nominal.body_mass[1])
    np.testing.assert_allclose(heavier.body_mass[2:], nominal.body_mass[2:])
    np.testing.assert_allclose(model_of("friction x 0.5").geom_friction[:, 0], 0.5 * nominal.geom_friction[:, 0])
    assert len(CHANGES) == 7


@pytest.mark.slow
def test_the_command(hopper_data: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_robots, "load", lambda name, words: load(name, [*words, "dynamics.steps=20"]))
    options = ["task=d4rl/hopper-medium-v2", f"data_dir={hopper_data}", f"output_dir={tmp_path / 'hopper'}", "rounds=1"]
    options += ["sampler.engine=torch"]
    options += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
    options += ["evaluation.methods=[]", "debug=true", "processes=1", "trackers=[]", "horizon=8"]
    status, _, error = run(train_state, *options)
    assert not status, error
    page = tmp_path / "page.md"
    arguments = ["--runs", str(tmp_path / "hopper"), "--changes", "joints x 1.5", "--steps", "150"]
    arguments += ["--episodes", "2", "--folder", str(tmp_path / "play"), "--cells", str(tmp_path / "cells.json")]
    changed_robots.main([*arguments, "--page", str(page)])
    rows = re.findall(r"^\| hopper \| (.*?) \| 150 \| (\S+) \|", page.read_text(), re.MULTILINE)
    assert [change for change, _ in rows] == ["joints x 1.5"]
    assert all(np.isfinite(float(before)) for _, before in rows)
    with np.load(tmp_path / "play/hopper-joints_x_1.5-150.npz") as play:
        assert len(play["actions"]) >= 150 and (np.abs(play["actions"]) <= 1).all() and play["truncations"].any()
    before = page.read_text()
    changed_robots.main([*arguments, "--page", str(page)])  # reuses the results
    assert page.read_text() == before
