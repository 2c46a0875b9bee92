"""Training of an expert: checkpoints, going on, export, and what is refused."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.experts import PolicyNetwork, export, task_options, train
from envs.simulator import DMControlEnv

SMALL = ["--decisions", "400", "--interval", "200", "--warmup", "100"]
WALKER = ["walker_walk", "--recipe", "vd4rl", "--decisions", "40", "--interval", "20", "--warmup", "10"]
WALKER += ["--batch-size", "8", "--episode", "15", "--kept", "30"]


@pytest.fixture
def few_episodes(monkeypatch):
    """Policies are measured on one episode."""
    monkeypatch.setattr(train, "WATCH_SEEDS", (0,))
    monkeypatch.setattr(export, "SELECTION_SEEDS", (0,))
    monkeypatch.setattr(export, "SEEDS", (0, 1))


def test_the_action_repeat_is_the_configurations():
    assert [task_options(task)["action_repeat"] for task in ("cartpole_swingup", "walker_walk")] == [4, 2]


def test_training_leaves_checkpoints_and_a_ladder(tmp_path: Path, capsys, few_episodes, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    arguments = ["pendulum_swingup", "--output", str(tmp_path / "run"), "--policies", str(tmp_path / "policies")]
    assert train.main([*arguments, *SMALL, "--demonstrations", "1"]) == 0
    assert [path.stem for path in sorted((tmp_path / "run").glob("*.safetensors"))] == ["00000200", "00000400"]
    expert = PolicyNetwork.load(tmp_path / "policies" / "pendulum_swingup" / "expert.safetensors")
    assert expert.info["settings"]["decisions"] == 400 and expert.info["settings"]["demonstrations"] == 1
    assert expert.info["command"].endswith("--decisions 400 --seed 0 --interval 200 --warmup 100 --demonstrations 1")
    assert len(expert.info["returns"]) == 2
    assert not list((tmp_path / "temporary").glob("SB3*"))
    capsys.readouterr()
    assert train.main([*arguments, *SMALL, "--demonstrations", "2"]) == 2
    assert "holds another training" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "my.txt").write_text("mine")
    assert train.main([*arguments, *SMALL, "--output", str(tmp_path / "notes")]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_training_that_was_cut_off_goes_on_with_the_same_result(tmp_path: Path, monkeypatch, few_episodes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--policies", str(tmp_path / "policies")]
    assert train.main([*WALKER, *options, "--output", str(whole)]) == 0
    intervals = []

    def one_interval(*arguments):
        if intervals:
            raise KeyboardInterrupt
        intervals.append(train_interval(*arguments))

    train_interval = train.train_interval
    monkeypatch.setattr(train, "train_interval", one_interval)
    with pytest.raises(KeyboardInterrupt):
        train.main([*WALKER, *options, "--output", str(cut)])
    monkeypatch.setattr(train, "train_interval", train_interval)
    assert train.main([*WALKER, *options, "--output", str(cut)]) == 0
    names = [
        ".lock",
        "00000020.npz",
        "00000020.safetensors",
        "00000040.npz",
        "00000040.safetensors",
        "about.json",
        "state.pt",
    ]
    assert sorted(path.name for path in cut.iterdir()) == names
    for name in ("00000020", "00000040"):
        first, second = (PolicyNetwork.load(folder / f"{name}.safetensors") for folder in (whole, cut))
        for one, other in zip([*first.layers, first.log_std], [*second.layers, second.log_std], strict=True):
            np.testing.assert_array_equal(one[0], other[0])  # type: ignore[index]
        rows, again = (dict(np.load(folder / f"{name}.npz")) for folder in (whole, cut))
        assert {key: rows[key].tobytes() for key in rows} == {key: again[key].tobytes() for key in again}


def test_a_training_can_be_prolonged(tmp_path: Path, few_episodes, capsys):
    arguments = [*WALKER, "--policies", str(tmp_path / "policies"), "--output", str(tmp_path / "run")]
    assert train.main([*arguments, "--decisions", "20"]) == 0
    assert train.main([*arguments, "--decisions", "40"]) == 0
    assert "goes on after 20 decisions" in capsys.readouterr().out
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == 2
    assert train.main([*arguments, "--decisions", "20"]) == 2
    assert "state.pt: holds 40 decisions; give --decisions of at least as many, found 20" in capsys.readouterr().err
    state = tmp_path / "run" / "state.pt"
    whole = state.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"PK damaged", whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :]):
        state.write_bytes(damaged)
        assert train.main([*arguments, "--decisions", "60"]) == 2
        assert "state.pt: damaged" in capsys.readouterr().err


def test_the_first_decisions_are_written_down(tmp_path: Path, few_episodes):
    assert train.main([*WALKER, "--output", str(tmp_path / "run"), "--policies", str(tmp_path / "policies")]) == 0
    parts = [np.load(tmp_path / "run" / f"{name}.npz") for name in ("00000020", "00000040")]
    physics, action, reward, first = (
        np.concatenate([part[key] for part in parts]) for key in ("physics", "action", "reward", "first")
    )
    assert np.flatnonzero(first).tolist() == [0, 16, 22]  # 15 and 5 decisions, then the 10 that are left of 30
    assert len(physics) == 33
    env = DMControlEnv("walker_walk", action_repeat=2)
    for row in np.flatnonzero(~first):
        env.set_physics(physics[row - 1])
        _, gained, _, _, info = env.step(action[row])
        assert gained == pytest.approx(reward[row])
        np.testing.assert_allclose(info["physics"], physics[row], atol=1e-9)


def test_the_numpy_policy_acts_and_samples_as_the_actor_does():
    settings = replace(train.VD4RL, decisions=100, interval=100)
    model, _ = train.make_model("walker_walk", settings, seed=0)
    with torch.no_grad():
        model.policy.actor.log_std.weight *= 5
    policy = train.policy_of(model, {"task": "walker_walk"})
    states = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    with torch.no_grad():
        mean, log_std, _ = model.policy.actor.get_action_dist_params(torch.from_numpy(states))
    np.testing.assert_allclose(policy(states), np.tanh(mean), atol=1e-6)
    random = np.random.default_rng(1)
    drawn = np.stack([np.arctanh(policy.sample(states, random).astype(np.float64)) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), log_std.exp(), rtol=0.03)


def test_time_limits_are_bootstrapped_through():
    """The replay buffer must not take the end of an episode by its time limit for a terminal state."""
    settings = replace(train.SETTINGS["pendulum_swingup"], warmup=50, episode=10, demonstrations=1)
    model, _ = train.make_model("pendulum_swingup", settings, seed=0)
    model.learn(40)
    train.add_demonstrations(model, "pendulum_swingup", settings)
    buffer = model.replay_buffer
    ends = np.flatnonzero(buffer.dones[: buffer.pos, 0])
    assert ends.tolist() == [9, 19, 29, 39, 289]
    assert not buffer._get_samples(ends).dones.any()


def test_the_command_trains_with_the_same_settings():
    settings = replace(train.VD4RL, sum_rewards=False, kept=5)
    words = train.command("cheetah_run", settings, 3, "vd4rl").split()
    assert words[:3] == ["python", "-m", "envs.experts.train"]
    assert words[3:8] == ["cheetah_run", "--recipe", "vd4rl", "--decisions", "1000000"]
    assert words[8:] == ["--seed", "3", "--no-sum-rewards", "--kept", "5"]
    assert asdict(train.VD4RL)["sum_rewards"]


def test_training_refuses_what_it_cannot_do(monkeypatch, tmp_path: Path, capsys):
    def refused(*arguments: str) -> str:
        assert train.main([*arguments, "--output", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "task='chess_win' is unknown; allowed: cartpole_swingup" in refused("chess_win")
    assert "allowed: walker_walk, cheetah_run" in refused("cartpole_swingup", "--recipe", "vd4rl")
    for words, message in (
        (["--decisions", "300", "--interval", "200"], "--decisions: must be a multiple of --interval 200, found 300"),
        (["--interval", "0"], "--interval: must be at least 1, found 0"),
        (["--interval", "-500"], "--interval: must be at least 1, found -500"),
        (["--learning-rate", "nan"], "--learning-rate: must be above 0, found nan"),
        (["--demonstrations", "-1"], "--demonstrations: must be at least 0, found -1"),
        (["--seed", "-1"], "--seed: must be 0 or more, found -1"),
        (["--decisions", "1000"], "--policies: is needed, since other settings"),
    ):
        assert message in refused("pendulum_swingup", *words)
    assert "no checkpoints; train first" in refused("pendulum_swingup", "--export-only")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert "pip install -e '.[experts]'" in refused("pendulum_swingup")
