"""What is chosen among the checkpoints of a training."""

from dataclasses import replace
from pathlib import Path

import pytest

from envs.experts import PolicyNetwork, export, train
from mpdiffuser.errors import InputError


def checkpoints(folder: Path, task: str, watched: dict[int, float]) -> Path:
    """A folder of untrained policies that claim these returns, decisions -> return."""
    model, _ = train.make_model(task, replace(train.VD4RL, decisions=100, interval=100), seed=0)
    for decisions, found in watched.items():
        repeat = train.task_options(task)["action_repeat"]
        info = {"task": task, "action_repeat": repeat, "decisions": decisions, "watch_return": found}
        train.policy_of(model, info).save(folder / f"{decisions:08d}.safetensors")
    return folder


def claimed(task: str, policy: PolicyNetwork) -> PolicyNetwork:
    policy.info["return_mean"] = policy.info["watch_return"]
    return policy


def test_the_levels_are_near_the_fractions_of_the_experts_return_and_apart(tmp_path: Path, monkeypatch):
    watched = {1: 5.0, 2: 22.0, 3: 24.0, 4: 41.0, 5: 58.0, 6: 83.0, 7: 100.0, 8: 95.0}
    run = checkpoints(tmp_path / "run", "pendulum_swingup", watched)
    monkeypatch.setattr(export, "measure", claimed)
    monkeypatch.setattr(export, "choose_expert", lambda task, found: max(found, key=lambda p: p.info["watch_return"]))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "old.safetensors").write_text("")
    export.export("pendulum_swingup", run, tmp_path / "policies")
    assert not (tmp_path / "policies" / "old.safetensors").exists()
    found = {file.stem: PolicyNetwork.load(file).info["decisions"] for file in tmp_path.glob("policies/*")}
    assert found == {"checkpoint_1": 2, "checkpoint_2": 4, "checkpoint_3": 5, "checkpoint_4": 6, "expert": 7}


def test_v_d4rls_agents_are_the_best_checkpoint_and_the_one_nearest_to_half(tmp_path: Path, monkeypatch):
    run = checkpoints(tmp_path / "run", "walker_walk", {10: 40.0, 20: 60.0, 30: 51.0, 40: 100.0, 50: 90.0})
    monkeypatch.setattr(export, "SEEDS", (0, 1))
    monkeypatch.setattr(export, "choose_expert", lambda task, found: max(found, key=lambda p: p.info["watch_return"]))
    export.export_agents("walker_walk", run, tmp_path / "agents")
    agents = [PolicyNetwork.load(tmp_path / "agents" / f"{name}.safetensors") for name in ("medium", "expert")]
    assert [agent.info["decisions"] for agent in agents] == [30, 40]
    assert all(agent.log_std is not None and len(agent.info["returns"]) == 2 for agent in agents)


def test_a_folder_without_checkpoints_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere: no checkpoints; train first"):
        export.export("pendulum_swingup", tmp_path / "nowhere", tmp_path / "policies")
