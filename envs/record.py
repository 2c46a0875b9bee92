"""The record of an environment: a JSON object that says all it takes to make the environment again.

Datasets and pipelines keep it as info["environment"]; where there is no environment, the key is absent.

    {"kind": "dm_control", "task": "cartpole_swingup", "action_repeat": 4, "size": 64, "camera": 1, "rendering": "fast"}
    {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": null}
    {"kind": "go2", "payload": 3.0}
    {"kind": "maze2d", "maze": "umaze", "reward": "sparse"}
    {"kind": "antmaze", "maze": "umaze"}
    {"kind": "adroit", "task": "pen"}
    {"kind": "kitchen", "task": "mixed"}
    {"kind": "ogbench", "env_id": "cube-single-v0"}
    {"kind": "user", "factory": "package.module:factory"}

A record may come from a stranger's folder. Each field is checked, and a record makes only the classes in `KINDS`. The
kind "user" imports code. So it is made only of a `GivenRecord`, which no file can hold.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpdiffuser.errors import InputError

if TYPE_CHECKING:
    from envs.protocol import Environment


@dataclass(frozen=True)
class Kind:
    """A kind of environment.

    Args:
        module, name: of the class or function, whose arguments are `observation` and the record's fields.
        required: fields that a record must have, with their types.
        optional: fields that it may have; null stands for the class's default.
    """

    module: str
    name: str
    required: dict[str, type]
    optional: dict[str, type]

    def load(self) -> "Callable[..., Environment]":
        """Import the class or function; only then is its simulator imported."""
        return getattr(importlib.import_module(self.module), self.name)


KINDS = {
    "dm_control": Kind(
        "envs.simulator",
        "DMControlEnv",
        {"task": str, "action_repeat": int, "size": int, "camera": int, "rendering": str},
        {"time_limit": float},
    ),
    "gymnasium": Kind("envs.gym_env", "make_registered", {"env_id": str}, {"speed_limit": float}),
    "go2": Kind("envs.go2", "Go2", {}, {"payload": float, "weak_leg": float, "friction": float}),
    "maze2d": Kind("envs.maze2d", "Maze2D", {"maze": str, "reward": str}, {}),
    "antmaze": Kind("envs.ant_maze", "AntMaze", {"maze": str}, {}),
    "adroit": Kind("envs.adroit", "make_adroit", {"task": str}, {}),
    "kitchen": Kind("envs.kitchen", "Kitchen", {"task": str}, {}),
    "ogbench": Kind("envs.ogbench", "make_ogbench", {"env_id": str}, {}),
    "user": Kind("envs.gym_env", "make_own", {"factory": str}, {}),
}
OGBENCH = "ogbench/"
ENDLESS = ("lqr_",)  # dm_control's tasks without a time limit begin with one of these
TYPES = {str: "a text", int: "a whole number", float: "a finite number or null"}


class GivenRecord(dict):
    """A record that the user gave in this program. Read from a file, a record is a plain dict."""


def environment_of(given: str | None, record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the record of the environment to use.

    Args:
        given: the option `environment`: a gymnasium id, ogbench/ and an id of OGBench, package.module:factory, or None.
        record: of the dataset or pipeline, used if nothing is given; None: it has no environment.

    Raises:
        InputError: for another value of the option.
    """
    if given is None:
        return record
    module, colon, factory = given.partition(":")
    if colon and not all(part.isidentifier() for part in f"{module}.{factory}".split(".")):
        raise InputError(f"environment={given}: must be package.module:factory, or a gymnasium id such as Pendulum-v1")
    if given.startswith(OGBENCH):
        return {"kind": "ogbench", "env_id": given.removeprefix(OGBENCH)}
    return GivenRecord(kind="user", factory=given) if colon else {"kind": "gymnasium", "env_id": given}


def check_record(record: Any, where: str = "environment") -> None:
    """Check the fields of a record and their types; the values are checked by the environment's class.

    Args:
        where: what the error calls the record, e.g. "results/pipeline: info.environment".

    Raises:
        InputError: naming the field, what was found and what is allowed.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: must be an object with the field kind, found {_short(record)}")
    found = record.get("kind")
    if not isinstance(found, str) or found not in KINDS:
        raise InputError(f"{where}.kind: must be one of {', '.join(KINDS)}, found {_short(found)}")
    kind = KINDS[found]
    types = kind.required | kind.optional
    allowed = f"a {found} environment has kind, {', '.join(types)}"
    for field in kind.required:
        if field not in record:
            raise InputError(f"{where}.{field}: is missing; {allowed}")
    for field, value in record.items():
        if field == "kind":
            continue
        if field not in types:
            raise InputError(f"{where}: no field {_short(field)}; {allowed}")
        if not _fits(value, types[field], field in kind.optional):
            raise InputError(f"{where}.{field}: must be {TYPES[types[field]]}, found {_short(value)}")
    if found == "user" and not isinstance(record, GivenRecord):
        raise InputError(
            f"{where}: is the user's own, {_short(record['factory'])}; code that a file names is never run; "
            "give environment=package.module:factory on the command line"
        )


def dm_control_record(task: Mapping[str, Any], rendering: str, time_limit: float | None = None) -> dict[str, Any]:
    """The record of a task of the configuration.

    Args:
        task: name, action_repeat, size and camera, as in configs/task/cartpole_swingup.yaml.
        rendering: "fast" or "full".
        time_limit: seconds of simulated time in an episode; None: the task's own limit.
    """
    record = {"kind": "dm_control", "task": task["name"]}
    record |= {name: task[name] for name in ("action_repeat", "size", "camera")} | {"rendering": rendering}
    return record if time_limit is None else record | {"time_limit": float(time_limit)}


def whole_episodes(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record without the time limit of the collected episodes: an evaluation lasts as long as the task says.

    Tasks that say nothing keep it.
    """
    endless = str(record.get("task")).startswith(ENDLESS)
    return record if "time_limit" not in record or endless else {k: v for k, v in record.items() if k != "time_limit"}


def _fits(value: Any, kind: type, optional: bool) -> bool:
    if value is None:
        return optional
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is kind


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
