"""FetchPickAndPlace: the script, random episodes, and the command at the smallest size."""

from pathlib import Path

import numpy as np
import pytest

from envs.robots import Robots
from experiments import fetch


@pytest.mark.slow
def test_the_script_succeeds_and_random_actions_do_not() -> None:
    robots = Robots(fetch.ENVIRONMENT, 10)
    assert sum(map(fetch.succeeded, robots.run(fetch.Script(), range(10)))) >= 8
    episodes = robots.run(fetch.Random(), range(10))
    assert sum(map(fetch.succeeded, episodes)) <= 4
    actions = np.stack([one["actions"] for one in episodes])
    changed = (np.diff(actions, axis=1) != 0).any(2).mean()
    assert 0.1 < changed < 0.3  # an action is held for 5.5 decisions on average


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COPIES": 5, "COUNTS": (10,), "LEVELS": 2}.items():
        monkeypatch.setattr(fetch, name, value)
    options = [
        "sampler.engine=torch",
        "sampler.steps=2",
        "baselines.d_mpc.steps=2",
        "rounds=1",
        "horizon=8",
        "ranker.hidden=16",
        "validation=0.3",
    ]
    options += [f"{model}.{option}" for model in ("planner", "dynamics") for option in ("width=8", "multipliers=[1,2]")]
    models = ("cloning", "ranker", "planner", "dynamics", "forward", "action_planner", "clean_dynamics", "critic")
    options += [f"train.{model}.steps=3" for model in models]
    arguments = [
        "--demonstrations",
        "5",
        "--seeds",
        "0",
        "--counts",
        "10",
        "--episodes",
        "5",
        "--folder",
        str(tmp_path / "runs"),
    ]
    fetch.main([*arguments, "--page", str(tmp_path / "page.md"), "--set", *options])
    rows = [line.split(" | ")[1] for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == ["cloning", "planner only", "fused", "D-MPC", "heard, p = 2"] + [
        f"{row}, 10 random" for row in ("fused", "D-MPC", "heard, p = 2")
    ]
