"""The committed policies: files, forward pass against torch, returns against the simulator."""

import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open

from envs import experts
from envs.experts import FOLDER, SEEDS, PolicyNetwork, ladder, load_policy, policy_names, rollout_returns, task_options
from envs.simulator import DMControlEnv
from mpdiffuser.errors import InputError

LOWEST = {
    "cartpole_swingup": 800,
    "pendulum_swingup": 750,
    "reacher_easy": 950,
    "point_mass_easy": 850,
    "ball_in_cup_catch": 900,
    "cheetah_run": 750,
}
FILES = sorted(FOLDER.glob("*/*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_file_is_small_safe_and_says_where_it_comes_from(path):
    assert path.stat().st_size < 600_000
    with safe_open(path, framework="numpy") as file:  # a format without code
        assert all(np.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    info = PolicyNetwork.load(path).info
    task = path.parent.name
    assert info["task"] == task and info["action_repeat"] == task_options(task)["action_repeat"]
    assert info["episodes"] == len(info["seeds"]) == len(info["returns"]) == 20
    np.testing.assert_allclose(info["return_mean"], np.mean(info["returns"]), atol=0.01)
    np.testing.assert_allclose(info["return_sem"], np.std(info["returns"], ddof=1) / np.sqrt(20), atol=0.01)
    assert f"envs.experts.train {task} " in info["command"]
    assert {"algorithm", "decisions", "settings", "versions"} <= set(info)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_numpy_forward_equals_torch(path):
    policy = PolicyNetwork.load(path)
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


@pytest.mark.parametrize("task", LOWEST)
def test_expert_reaches_its_return(task):
    policy = load_policy(task)
    assert policy.info["return_mean"] >= LOWEST[task]
    returns = rollout_returns(task, policy.info["action_repeat"], policy, SEEDS[:2])
    np.testing.assert_allclose(returns, policy.info["returns"][:2], rtol=0.05)  # the recorded episodes come again


@pytest.mark.parametrize("task", experts.tasks())
def test_ladder_rises_from_random_to_expert(task):
    policies = ladder(task)
    assert policies[0] is None
    assert len(policies) >= 4  # random, at least two checkpoints, expert
    means = [policy.info["return_mean"] for policy in policies[1:]]
    assert means == sorted(means) and len(set(means)) == len(means)
    assert policy_names(task) == [f"checkpoint_{i}" for i in range(1, len(policies) - 1)] + ["expert"]
    assert means[-1] == load_policy(task).info["return_mean"]
    width = DMControlEnv(task).observation_space.shape[0]
    assert all(policy.layers[0][0].shape[1] == width for policy in policies[1:])


def test_unknown_task_and_name_are_refused():
    with pytest.raises(InputError, match=r"'cartpole'.*cartpole_swingup"):
        ladder("cartpole")
    with pytest.raises(InputError, match=r"'checkpoint_99'.*checkpoint_1, .*expert"):
        load_policy("cartpole_swingup", "checkpoint_99")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = (FOLDER / "cartpole_swingup" / "expert.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"layers.0.weight": [1.0]}))
    with pytest.raises(InputError, match=r"cut\.safetensors.*damaged"):
        PolicyNetwork.load(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"pickle\.safetensors"):
        PolicyNetwork.load(tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        PolicyNetwork.load(tmp_path / "absent.safetensors")


def test_save_and_load_return_the_same_policy(tmp_path):
    random = np.random.default_rng(0)
    layers = [(random.normal(size=(4, 3)), random.normal(size=4)), (random.normal(size=(2, 4)), random.normal(size=2))]
    policy = PolicyNetwork(layers, {"task": "none", "seeds": [1, 2]})
    policy.save(tmp_path / "new" / "policy.safetensors")
    loaded = PolicyNetwork.load(tmp_path / "new" / "policy.safetensors")
    assert loaded.info == policy.info
    states = random.normal(size=(5, 3))
    np.testing.assert_array_equal(loaded(states), policy(states))
