"""The committed policies: files, forward pass against torch, levels against the simulator; how they are made."""

import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from envs import experts, train_expert
from envs.experts import FOLDER, SEEDS, Policy, ladder, load_policy, names, rollout_returns
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

LEVELS = {
    "cartpole_swingup": 800,
    "pendulum_swingup": 750,
    "reacher_easy": 950,
    "point_mass_easy": 850,
    "ball_in_cup_catch": 900,
}
FILES = sorted(FOLDER.glob("*/*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_file_is_small_safe_and_says_where_it_comes_from(path):
    assert path.stat().st_size < 200_000
    with safe_open(path, framework="numpy") as file:  # a format without code
        assert all(np.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    info = Policy.load(path).info
    task = path.parent.name
    assert info["task"] == task and info["action_repeat"] == experts.ACTION_REPEATS[task]
    assert info["episodes"] == len(info["seeds"]) == len(info["returns"]) == 20
    np.testing.assert_allclose(info["return_mean"], np.mean(info["returns"]), atol=0.01)
    np.testing.assert_allclose(info["return_sem"], np.std(info["returns"], ddof=1) / np.sqrt(20), atol=0.01)
    assert f"envs.experts.train {task} " in info["command"]
    assert {"algorithm", "decisions", "settings", "versions"} <= set(info)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_numpy_forward_equals_torch(path):
    policy = Policy.load(path)
    modules: list[torch.nn.Module] = []
    for weight, bias in policy.layers:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        modules += [layer, torch.nn.ReLU()]
    network = torch.nn.Sequential(*modules[:-1], torch.nn.Tanh())
    states = np.random.default_rng(0).normal(size=(16, policy.layers[0][0].shape[1])).astype(np.float32)
    actions = policy(states)
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    np.testing.assert_allclose(actions, network(torch.from_numpy(states)).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(policy(states[3:4])[0], actions[3], atol=1e-5)


@pytest.mark.parametrize("task", LEVELS)
def test_expert_reaches_its_level(task):
    policy = load_policy(task)
    assert policy.info["return_mean"] >= LEVELS[task]
    returns = rollout_returns(task, policy.info["action_repeat"], policy, SEEDS[:2])
    np.testing.assert_allclose(returns, policy.info["returns"][:2], rtol=0.05)  # the recorded episodes come again


@pytest.mark.parametrize("task", experts.tasks())
def test_ladder_rises_from_random_to_expert(task):
    rungs = ladder(task)
    assert rungs[0] is None
    assert len(rungs) >= 4  # random, at least two checkpoints, expert
    means = [rung.info["return_mean"] for rung in rungs[1:]]
    assert means == sorted(means) and len(set(means)) == len(means)
    assert names(task) == [f"rung_{i}" for i in range(1, len(rungs) - 1)] + ["expert"]
    assert means[-1] == load_policy(task).info["return_mean"]
    width = DMControlEnv(task).observation_space.shape[0]
    assert all(rung.layers[0][0].shape[1] == width for rung in rungs[1:])


def test_unknown_task_and_name_are_refused():
    with pytest.raises(InputError, match=r"'cartpole'.*cartpole_swingup"):
        ladder("cartpole")
    with pytest.raises(InputError, match=r"'rung_99'.*rung_1, .*expert"):
        load_policy("cartpole_swingup", "rung_99")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = (FOLDER / "cartpole_swingup" / "expert.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"layers.0.weight": [1.0]}))
    with pytest.raises(InputError, match=r"cut\.safetensors.*damaged"):
        Policy.load(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"pickle\.safetensors"):
        Policy.load(tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        Policy.load(tmp_path / "absent.safetensors")


def test_save_and_load_return_the_same_policy(tmp_path):
    random = np.random.default_rng(0)
    layers = [(random.normal(size=(4, 3)), random.normal(size=4)), (random.normal(size=(2, 4)), random.normal(size=2))]
    policy = Policy(layers, {"task": "none", "seeds": [1, 2]})
    policy.save(tmp_path / "new" / "policy.safetensors")
    loaded = Policy.load(tmp_path / "new" / "policy.safetensors")
    assert loaded.info == policy.info
    states = random.normal(size=(5, 3))
    np.testing.assert_array_equal(loaded(states), policy(states))


def test_table_lists_random_rungs_and_expert(capsys):
    experts.main(["point_mass_easy", "--episodes", "2"])
    head, rule, row = (line.strip("| ").split("|") for line in capsys.readouterr().out.strip().splitlines())
    assert [cell.strip() for cell in head] == ["task", "random", "rungs", "expert"]
    assert row[0].strip() == "point_mass_easy" and len(row) == len(rule) == 4
    assert float(row[3].split("±")[0]) > 700 > float(row[1].split("±")[0])


def test_training_leaves_checkpoints_and_a_ladder(tmp_path):
    pytest.importorskip("stable_baselines3")
    arguments = ["pendulum_swingup", "--output", str(tmp_path / "run"), "--policies", str(tmp_path / "policies")]
    arguments += ["--decisions", "400", "--interval", "200", "--warmup", "100", "--demonstrations", "1"]
    train_expert.main(arguments)
    assert [path.stem for path in sorted((tmp_path / "run").glob("*.safetensors"))] == ["00000200", "00000400"]
    expert = Policy.load(tmp_path / "policies" / "pendulum_swingup" / "expert.safetensors")
    assert expert.info["settings"]["decisions"] == 400 and expert.info["settings"]["demonstrations"] == 1
    assert expert.info["command"].endswith("--decisions 400 --seed 0 --interval 200 --warmup 100 --demonstrations 1")
    assert len(expert.info["returns"]) == 20
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["decisions"] for line in log] == [200, 400]
    with pytest.raises(InputError, match="holds checkpoints already"):
        train_expert.main(arguments)


def test_time_limits_are_bootstrapped_through():
    """The replay buffer must not take the end of an episode by its time limit for a terminal state."""
    pytest.importorskip("stable_baselines3")
    settings = replace(train_expert.SETTINGS["pendulum_swingup"], warmup=50, episode=10, demonstrations=0)
    model = train_expert.make_model("pendulum_swingup", settings, seed=0)
    model.learn(40)
    train_expert.add_demonstrations(model, "pendulum_swingup", 1)
    buffer = model.replay_buffer
    ends = np.flatnonzero(buffer.dones[: buffer.pos, 0])
    assert ends.tolist() == [9, 19, 29, 39, 289]
    assert not buffer._get_samples(ends).dones.any()


def test_training_refuses_an_unknown_task_and_names_a_missing_library(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"chess_win.*cartpole_swingup"):
        train_expert.main(["chess_win"])
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[experts\]'"):
        train_expert.main(["pendulum_swingup", "--output", str(tmp_path / "run")])
