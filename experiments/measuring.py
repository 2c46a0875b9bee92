"""What the experiments share: episodes of a controller, facts of the machine, and measurements that take long, each
kept in a file, so that a run that was cut off goes on."""

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpdiffuser.evaluation import evaluate

from envs.vector import VectorEnv
from evaluate import environment_options
from mpdiffuser.controller import Acting
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole
from mpdiffuser.machine import available_cores, cpu_name


def closed_loop(
    controller: Acting, info: dict[str, Any], seeds: Sequence[int], label: str, probe_every: int = 0
) -> dict[str, Any]:
    """Metrics of an episode a seed in the environment of a pipeline with this info."""
    environments = VectorEnv(len(seeds), **environment_options(info, blind=False))
    try:
        return evaluate([controller], [environments], seeds, probe_every=probe_every, label=label).metrics()
    finally:
        environments.close()


def machine() -> dict[str, Any]:
    """What a page says of when and where it was made: date, cpu, cores."""
    return {"date": datetime.date.today(), "cpu": cpu_name(), "cores": available_cores()}


def kept(file: Path, identity: dict[str, Any], measure: Callable[[], dict[str, Any]], option: str) -> dict[str, Any]:
    """What `measure` gives, with the identity and the date; from the file if it holds that already.

    Args:
        identity: of what was measured; JSON.
        option: the command's option that names the folder, for the error.

    Raises:
        InputError: if the file holds something else.
    """
    if file.exists():
        found = json.loads(file.read_text())
        if found["identity"] != identity:
            raise InputError(f"{file}: made with other settings; choose another {option}, or remove it")
        return found
    made = {"identity": identity, "date": str(datetime.date.today()), **measure()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(made))
    return json.loads(file.read_text())
