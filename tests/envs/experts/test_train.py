"""Training of an expert: checkpoints, export, and what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from envs.experts import PolicyNetwork, train
from mpdiffuser.errors import InputError


def test_the_action_repeat_is_the_configurations():
    assert (train.action_repeat("cartpole_swingup"), train.action_repeat("walker_walk")) == (4, 2)


def test_training_leaves_checkpoints_and_a_ladder(tmp_path):
    pytest.importorskip("stable_baselines3")
    arguments = ["pendulum_swingup", "--output", str(tmp_path / "run"), "--policies", str(tmp_path / "policies")]
    arguments += ["--decisions", "400", "--interval", "200", "--warmup", "100", "--demonstrations", "1"]
    train.main(arguments)
    assert [path.stem for path in sorted((tmp_path / "run").glob("*.safetensors"))] == ["00000200", "00000400"]
    expert = PolicyNetwork.load(tmp_path / "policies" / "pendulum_swingup" / "expert.safetensors")
    assert expert.info["settings"]["decisions"] == 400 and expert.info["settings"]["demonstrations"] == 1
    assert expert.info["command"].endswith("--decisions 400 --seed 0 --interval 200 --warmup 100 --demonstrations 1")
    assert len(expert.info["returns"]) == 20
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["decisions"] for line in log] == [200, 400]
    with pytest.raises(InputError, match="holds checkpoints already"):
        train.main(arguments)


def test_time_limits_are_bootstrapped_through():
    """The replay buffer must not take the end of an episode by its time limit for a terminal state."""
    pytest.importorskip("stable_baselines3")
    settings = replace(train.SETTINGS["pendulum_swingup"], warmup=50, episode=10, demonstrations=0)
    model = train.make_model("pendulum_swingup", settings, seed=0)
    model.learn(40)
    train.add_demonstrations(model, "pendulum_swingup", 1)
    buffer = model.replay_buffer
    ends = np.flatnonzero(buffer.dones[: buffer.pos, 0])
    assert ends.tolist() == [9, 19, 29, 39, 289]
    assert not buffer._get_samples(ends).dones.any()


def test_training_refuses_an_unknown_task_and_names_a_missing_library(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"chess_win.*cartpole_swingup"):
        train.main(["chess_win"])
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[experts\]'"):
        train.main(["pendulum_swingup", "--output", str(tmp_path / "run")])
