"""FetchPickAndPlace: the environment against the package's own, the script, and random episodes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from envs.robotics import make_fetch_pick_and_place
from experiments import fetch
from experiments.robots import Robots
from mpdiffuser.errors import InputError


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.utils", None)
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[robotics\]'"):
        make_fetch_pick_and_place()


def test_the_environment_is_the_packages() -> None:
    env = make_fetch_pick_and_place()
    seen, _ = env.reset(seed=3)
    inner = env.unwrapped
    whole = inner._get_obs()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(seen, np.concatenate([whole["desired_goal"], whole["observation"]]))
    np.testing.assert_allclose(seen[fetch.GOAL], whole["desired_goal"])
    np.testing.assert_allclose(seen[fetch.BLOCK], whole["achieved_goal"])
    for step in range(50):
        seen, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        near = np.linalg.norm(seen[fetch.BLOCK] - seen[fetch.GOAL]) < 0.05
        assert reward == (0.0 if near else -1.0) and not terminated and truncated == (step == 49)


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
    for name, value in {"COPIES": 5, "COUNTS": (10,)}.items():
        monkeypatch.setattr(fetch, name, value)
    options = ["rounds=1", "horizon=8", "ranker.hidden=16", "validation=0.3", "critic.hidden=16"][:4]
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
