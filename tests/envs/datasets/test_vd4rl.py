"""V-D4RL's datasets made again: layout, agents, replay, frames against the simulator, resuming, checksums."""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from envs.datasets import making, vd4rl
from envs.datasets.__main__ import main
from envs.datasets.opening import open_dataset
from envs.datasets.vd4rl import VD4RL
from envs.experts import PolicyNetwork
from envs.experts.train import RECIPES
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

STATES, ACTIONS = 24, 6  # of walker_walk


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """A folder of two agents: medium acts around -0.5, expert around 0.5."""
    for name, mean in (("medium", -0.5), ("expert", 0.5)):
        last = np.zeros((ACTIONS, STATES), np.float32), np.full(ACTIONS, np.arctanh(mean), np.float32)
        noise = np.zeros((ACTIONS, STATES), np.float32), np.full(ACTIONS, np.log(0.1), np.float32)
        policy = PolicyNetwork([last], {"task": "walker_walk", "return_mean": mean}, noise)
        policy.save(tmp_path / "agents" / "walker_walk" / f"{name}.safetensors")
    return tmp_path / "agents"


def test_both_agents_act_with_sampled_actions_in_v_d4rls_layout(tmp_path: Path, agents: Path, monkeypatch, capsys):
    monkeypatch.setitem(making.MAKERS, "vd4rl/tiny", VD4RL("walker_walk", "medium_expert", 2, agents))
    path = tmp_path / "data"
    monkeypatch.setattr(sys, "argv", ["datasets", "make", "vd4rl/tiny", str(path), "--rendering", "fast"])
    assert main() == 0
    assert "V-D4RL: 2 files, 2 episodes, 1,000 steps, 64x64 px" in capsys.readouterr().out
    about = json.loads((path / "about.json").read_text())
    assert about["agents"]["expert"]["return_mean"] == 0.5 and about["environment"]["rendering"] == "fast"
    names = sorted(file.name for file in path.glob("*.npz"))
    assert names == [f"walker_walk-medium_expert-{number:03d}-501.npz" for number in (0, 1)]
    assert about["checksums"] == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    for name, mean in zip(names, (-0.5, 0.5)):
        episode = np.load(path / name)
        assert episode["image"].shape == (501, 64, 64, 3) and episode["image"].dtype == np.uint8
        assert not episode["action"][0].any() and episode["reward"][0] == 0 and episode["is_first"].sum() == 1
        drawn = np.arctanh(episode["action"][1:])
        np.testing.assert_allclose(drawn.mean(0), np.arctanh(mean), atol=0.02)
        np.testing.assert_allclose(drawn.std(0), 0.1, rtol=0.15)
    # a second environment of the record, with the same start and actions, sees the same
    env = DMControlEnv("walker_walk", "frames", 2, rendering="fast")
    frame, _ = env.reset(seed=int(np.random.default_rng([0, 1]).integers(2**31)))
    for row in range(4):
        np.testing.assert_array_equal(frame, episode["image"][row])
        frame, reward, *_ = env.step(episode["action"][row + 1])
        assert reward == pytest.approx(episode["reward"][row + 1], abs=1e-6)
    episodes = open_dataset(path)
    assert len(episodes["actions"]) == 2 * 501 and episodes.info["environment"] == about["environment"]
    (path / "about.json").write_text('{"environment": {"kind": "dm_control", "task": 3}}')
    with pytest.raises(InputError, match=r"about\.json: environment"):
        open_dataset(path)


def test_a_dataset_that_was_cut_off_goes_on_with_the_same_bytes(tmp_path: Path, agents: Path, monkeypatch):
    dataset = VD4RL("walker_walk", "random", 2, agents)
    monkeypatch.setattr(vd4rl, "publish", lambda partial, final: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dataset.write(tmp_path / "cut", seed=3)
    monkeypatch.undo()
    partial = tmp_path / "cut.partial"
    files = sorted(partial.glob("*.npz"))
    before = [file.read_bytes() for file in files]
    files[1].unlink()
    with pytest.raises(InputError, match="a part of another dataset"):
        dataset.write(tmp_path / "cut", seed=4)
    dataset.write(tmp_path / "cut", seed=3)
    assert [file.read_bytes() for file in sorted((tmp_path / "cut").glob("*.npz"))] == before
    assert not partial.exists() and not (tmp_path / "cut" / ".lock").exists()


def test_a_replay_has_the_episodes_of_the_training(tmp_path: Path, agents: Path):
    env, random = DMControlEnv("walker_walk", action_repeat=2), np.random.default_rng(0)
    lengths, columns = (5, 5, 5, 2), {key: [] for key in ("physics", "action", "reward", "first")}  # type: ignore[var-annotated]
    for length in lengths:
        _, info = env.reset(seed=length)
        rows = [(info["physics"], np.zeros(ACTIONS, np.float32), 0.0, True)]
        for _ in range(length - 1):
            action = random.uniform(-1, 1, ACTIONS).astype(np.float32)
            _, reward, *_, info = env.step(action)
            rows.append((info["physics"], action, reward, False))
        for key, column in zip(columns, zip(*rows)):
            columns[key] += column
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match=r"run holds no training"):
        VD4RL("walker_walk", "medium_replay", 3, agents).write(tmp_path / "data", 0, run=run)
    facts = {"task": "walker_walk", "action_repeat": 2, "seed": 0, "settings": {}, "versions": {}}
    (run / "about.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"run must be a training by --recipe vd4rl, found .*interval=None"):
        VD4RL("walker_walk", "medium_replay", 3, agents).write(tmp_path / "data", 0, run=run)
    settings = {**asdict(RECIPES["vd4rl"]["walker_walk"]), "kept": 17}
    (run / "about.json").write_text(json.dumps({**facts, "settings": settings}))
    for name, part in (("00000020", slice(0, 7)), ("00000040", slice(7, None))):  # an episode lies in two parts
        np.savez(run / f"{name}.npz", **{key: np.array(column)[part] for key, column in columns.items()})
    VD4RL("walker_walk", "medium_replay", 3, agents).write(tmp_path / "data", 0, run=run)
    found = [np.load(file) for file in sorted((tmp_path / "data").glob("*.npz"))]
    assert tuple(len(episode["image"]) for episode in found) == lengths[:3]
    for key in ("action", "reward"):
        joined = np.concatenate([episode[key] for episode in found])
        np.testing.assert_array_equal(joined, np.array(columns[key], np.float32)[:15])
    env.set_physics(columns["physics"][6])
    np.testing.assert_array_equal(found[1]["image"][1], env.render())
    with pytest.raises(InputError, match=r"run: holds the first 3 whole episodes of a training, needed are 4"):
        VD4RL("walker_walk", "medium_replay", 4, agents).write(tmp_path / "more", 0, run=run)
    with pytest.raises(InputError, match=r"must be a training of cheetah_run with action repeat 2, found walker_walk"):
        VD4RL("cheetah_run", "medium_replay", 3, agents).write(tmp_path / "more", 0, run=run)
    (run / "00000020.npz").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match="a file of its rows is damaged"):
        VD4RL("walker_walk", "medium_replay", 3, agents).write(tmp_path / "more", 0, run=run)


def test_nothing_that_is_there_is_replaced(tmp_path: Path, agents: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine: exists already"):
        VD4RL("walker_walk", "random", 1, agents).write(tmp_path / "mine", 0)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="--run: is for medium_replay only"):
        VD4RL("walker_walk", "random", 1, agents).write(tmp_path / "new", 0, run=tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_missing_agent_is_named_with_the_command_that_trains_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"no agent medium .*envs\.experts\.train cheetah_run --recipe vd4rl"):
        VD4RL("cheetah_run", "medium_expert", agents=tmp_path).write(tmp_path / "data", 0)
    assert not list(tmp_path.iterdir())


def test_quadruped_is_seen_by_the_camera_of_v_d4rl():
    assert VD4RL("quadruped_walk", "expert").environment("full")["camera"] == 2
    assert VD4RL("humanoid_walk", "expert").environment("full")["camera"] == 0
