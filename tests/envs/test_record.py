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
from envs.record import KINDS, check_record, dm_control_record, whole_episodes
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
        (CARTPOLE, "states", 0.04),
        (CARTPOLE, "frames", 0.04),
        (CARTPOLE | {"time_limit": 0.08}, "both", 0.04),
        (HOPPER, "states", 0.008),
        (HOPPER | {"speed_limit": None}, "states", 0.008),
    ],
)
def test_every_kind_offers_what_the_protocol_says(record: dict[str, Any], observation: str, seconds: float) -> None:
    """Also after a round trip through JSON, as in a dataset's and a pipeline's info."""
    env = envs.make(json.loads(json.dumps(record)), observation)
    assert env.decision_seconds == seconds
    assert isinstance(env.action_space, spaces.Box) and (env.action_space.low == -1).all()
    first, info = env.reset(seed=3)
    assert env.observation_space.contains(first) and np.array_equal(info["physics"], env.get_physics())
    action = np.zeros(env.action_space.shape, np.float32)
    seen = env.peek(action[None])
    following, reward, terminated, truncated, info = env.step(action)
    assert env.observation_space.contains(following) and isinstance(reward, float)
    assert not (terminated and truncated) and info["cost"] == 0.0 and set(info) == {"physics", "cost"}
    for key in ("frames", "states") if observation == "both" else (...,):
        assert np.array_equal(seen[key][0], following[key])  # type: ignore[call-overload]
    env.close()


def test_the_time_limit_is_that_of_the_collected_episodes() -> None:
    limited = CARTPOLE | {"time_limit": 0.08}
    env = envs.make(limited)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(2)] == [False, True]
    assert whole_episodes(limited) == CARTPOLE == whole_episodes(CARTPOLE)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, r"environment: must be an object with the field kind, found None"),
        ([1], r"environment: must be an object with the field kind, found \[1\]"),
        ({}, r"environment\.kind: must be one of dm_control, gymnasium, found None"),
        ({"env_id": "Hopper-v4"}, r"environment\.kind: must be one of dm_control, gymnasium, found None"),
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
    with pytest.raises(InputError, match=r"observation='both': a gymnasium environment gives states only"):
        envs.make(HOPPER, "both")


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
