"""Records of environments: those that are made, and those that are refused, field by field."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import envs
from envs.record import KINDS, GivenRecord, check_record, dm_control_record, environment_of, whole_episodes
from envs.vector import VectorEnv
from mpdiffuser.errors import InputError

CARTPOLE: dict[str, Any] = {
    "kind": "dm_control",
    "task": "cartpole_swingup",
    "action_repeat": 4,
    "size": 32,
    "camera": 1,
    "rendering": "fast",
}
HOPPER: dict[str, Any] = {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": 0.5}


@pytest.mark.parametrize(
    ("record", "observation", "seconds"),
    [
        ({"kind": "gymnasium", "env_id": "Pendulum-v1"}, "states", None),
        ({"kind": "gymnasium", "env_id": "MountainCarContinuous-v0"}, "states", None),
        ({"kind": "gymnasium", "env_id": "InvertedPendulum-v4"}, "states", 0.04),
        (CARTPOLE, "states", 0.04),
        (CARTPOLE, "frames", 0.04),
        (CARTPOLE | {"time_limit": 0.08}, "both", 0.04),
        (HOPPER, "states", 0.008),
        (HOPPER | {"speed_limit": None}, "states", 0.008),
    ],
)
def test_every_kind_offers_what_the_protocol_says(
    record: dict[str, Any], observation: str, seconds: float | None
) -> None:
    """Also after a round trip through JSON, as in a dataset's and a pipeline's info."""
    env = envs.make(json.loads(json.dumps(record)), observation)
    assert env.decision_seconds == seconds
    assert isinstance(env.action_space, spaces.Box) and env.can_peek == (seconds is not None)
    first, info = env.reset(seed=3)
    assert env.observation_space.contains(first) and np.array_equal(info["physics"], env.get_physics())
    action = np.zeros(env.action_space.shape, np.float32)
    seen: Any = env.peek(action[None]) if env.can_peek else None
    following, reward, terminated, truncated, info = env.step(action)
    assert env.observation_space.contains(following) and isinstance(reward, float)
    assert not (terminated and truncated) and info["cost"] == 0.0 and set(info) == {"physics", "cost"}
    for key in () if seen is None else ("frames", "states") if observation == "both" else (...,):
        assert np.array_equal(seen[key][0], following[key])  # type: ignore[call-overload]
    env.close()


def test_the_time_limit_is_that_of_the_collected_episodes() -> None:
    limited = CARTPOLE | {"time_limit": 0.08}
    env = envs.make(limited)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(2)] == [False, True]
    assert whole_episodes(limited) == CARTPOLE == whole_episodes(CARTPOLE)
    endless = CARTPOLE | {"task": "lqr_lqr_2_1", "time_limit": 0.08}  # its own limit is infinite
    assert whole_episodes(endless) == endless


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, r"environment: must be an object with the field kind, found None"),
        ([1], r"environment: must be an object with the field kind, found \[1\]"),
        ({}, r"environment\.kind: must be one of dm_control, gymnasium, go2, .*, user, found None"),
        (
            {"env_id": "Hopper-v4"},
            r"environment\.kind: must be one of dm_control, gymnasium, go2, .*, user, found None",
        ),
        (HOPPER | {"kind": "os.system"}, r"environment\.kind: must be one of .*, found 'os\.system'"),
        (HOPPER | {"kind": ["gymnasium"]}, r"environment\.kind: must be one of .*, found \['gymnasium'\]"),
        (HOPPER | {"command": "rm"}, r"no field 'command'; a gymnasium environment has kind, env_id, speed_limit"),
        (HOPPER | {"observation": "states"}, r"no field 'observation'"),
        ({"kind": "gymnasium"}, r"environment\.env_id: is missing; a gymnasium environment has kind, env_id"),
        (HOPPER | {"env_id": None}, r"environment\.env_id: must be a text, found None"),
        (HOPPER | {"env_id": {"id": "Hopper-v4"}}, r"environment\.env_id: must be a text, found \{'id'"),
        (HOPPER | {"env_id": "os:Hopper-v4"}, r"environment 'os:Hopper-v4': must be a name such as Hopper-v4"),
        (HOPPER | {"env_id": "Hoper-v4"}, r"environment 'Hoper-v4': .*Hopper"),
        (HOPPER | {"speed_limit": "1"}, r"environment\.speed_limit: must be a finite number or null, found '1'"),
        (
            HOPPER | {"speed_limit": float("nan")},
            r"environment\.speed_limit: must be a finite number or null, found nan",
        ),
        (HOPPER | {"speed_limit": float("inf")}, r"environment\.speed_limit: must be a finite number .*, found inf"),
        (HOPPER | {"speed_limit": True}, r"environment\.speed_limit: must be a finite number or null, found True"),
        ({**CARTPOLE, "size": "64"}, r"environment\.size: must be a whole number, found '64'"),
        ({**CARTPOLE, "size": 64.0}, r"environment\.size: must be a whole number, found 64\.0"),
        ({**CARTPOLE, "size": 10**9}, r"size=1000000000: must be between 1 and 4096"),
        ({**CARTPOLE, "action_repeat": True}, r"environment\.action_repeat: must be a whole number, found True"),
        ({**CARTPOLE, "action_repeat": 0}, r"action_repeat=0: must be a whole number between 1 and 1000"),
        ({**CARTPOLE, "action_repeat": 10**400}, r"action_repeat=1000+: must be a whole number between"),
        ({**CARTPOLE, "rendering": "slow"}, r"rendering='slow': unknown; choose one of fast, full"),
        ({**CARTPOLE, "task": "cartpole"}, r"task='cartpole': no such dm_control task"),
        ({**CARTPOLE, "time_limit": -1.0}, r"time_limit=-1\.0: must be a positive number"),
        ({**CARTPOLE, "x" * 1000: 1}, r"no field 'x{76}\.\.\.; a dm_control"),
    ],
)
def test_a_bad_record_names_its_field(record: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        envs.make(record)


@pytest.mark.parametrize("field", KINDS["dm_control"].required)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(InputError, match=rf"pipeline: environment\.{field}: is missing; .* has kind, task, action_rep"):
        check_record({key: value for key, value in CARTPOLE.items() if key != field}, "pipeline: environment")


def test_unknown_observations_are_refused() -> None:
    with pytest.raises(InputError, match=r"observation='image': unknown; choose one of frames, states, both"):
        envs.make(CARTPOLE, "image")
    with pytest.raises(InputError, match=r"observation='image': unknown; choose one of frames, states, both"):
        envs.make(HOPPER, "image")
    with pytest.raises(InputError, match=r"environment 'Hopper-v4': gives no pictures"):
        envs.make(HOPPER, "both")


OWN = """
import gymnasium, numpy as np
class Tank(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,))
    action_space = gymnasium.spaces.Box(0, 7, (1,))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2), {}
    def step(self, action):
        return self.np_random.uniform(-1, 1, 2), float(action[0]), False, True, {}
class Tanks:
    small = Tank
"""


def test_the_users_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the current folder, also in a process of its own; but never from a file."""
    (tmp_path / "own_tank.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards
    record = environment_of("own_tank:Tanks.small", HOPPER)
    assert record is not None
    assert dict(record) == {"kind": "user", "factory": "own_tank:Tanks.small"} == json.loads(json.dumps(record))
    env = envs.make(record)
    assert env.action_space == spaces.Box(0, 7, (1,)) and env.decision_seconds is None
    vector = VectorEnv(whole_episodes(record), 2, processes=2)
    try:
        observations, _ = vector.reset(seed=[4, 5])
        np.testing.assert_array_equal(observations[1], env.reset(seed=5)[0])
        assert vector.single_action_space == env.action_space and not vector.can_peek
        assert vector.step(np.array([[9], [3]]))[1].tolist() == [7.0, 3.0]
    finally:
        vector.close()
    for stored in (dict(record), json.loads(json.dumps(record)), dict(record) | {"factory": "os:abort"}):
        for make in (envs.make, check_record, lambda each: VectorEnv(each, 1, 1)):
            with pytest.raises(InputError, match=r"code that a file names is never run; give environment=package\.mod"):
                make(stored)


def test_the_environment_that_was_given() -> None:
    assert environment_of(None, None) is None and environment_of(None, HOPPER) is HOPPER
    assert environment_of("Pendulum-v1", HOPPER) == {"kind": "gymnasium", "env_id": "Pendulum-v1"}
    assert not isinstance(environment_of("Pendulum-v1", None), GivenRecord)
    for given in (":", "a:", ":b", "a b:c", "a.:c", "a:b:c", "./a.py:make", "os:system('ls')"):
        with pytest.raises(InputError, match=r"must be package\.module:factory, or a gymnasium id"):
            environment_of(given, None)


def test_the_record_of_a_configuration() -> None:
    task = {"name": "cartpole_swingup", "action_repeat": 4, "size": 32, "camera": 1}
    assert dm_control_record(task, "fast") == CARTPOLE
    assert dm_control_record(task, "fast", 5) == CARTPOLE | {"time_limit": 5.0}


def test_importing_the_package_is_light() -> None:
    """It chooses the back-end, and the simulator is imported by `make`, after that."""
    program = "import sys, envs, envs.record; print('mujoco' in sys.modules, 'gymnasium' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
