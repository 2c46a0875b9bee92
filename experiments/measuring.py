"""What the experiments on trained pipelines share: loading, episodes in closed loop, and results kept in files.

A command that was cut off resumes: it reuses each result that is in its file.
"""

import datetime
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.record import whole_episodes
from envs.vector import VectorEnv
from evaluation.check import check_info, observed
from evaluation.closed_loop import evaluate
from mpdiffuser.controller import Policy
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json, write_whole
from mpdiffuser.pipeline import MPDiffuserPipeline

ROOT = Path(__file__).parent.parent


@functools.cache
def load_pipeline(folder: Path) -> MPDiffuserPipeline:
    """The pipeline of a folder, which is read once.

    Raises:
        InputError: if the folder holds none, or one without an environment.
    """
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    check_info(pipeline.config["info"])
    return pipeline


def describe(info: Mapping[str, Any]) -> str:
    """Task and data of a pipeline's info."""
    source = info.get("quality") or info.get("file", "")
    if info.get("stand_in"):
        source = f"{info['file']}, a stand-in, not {info['suite']}'s data"
    return f"{info['task']} ({source})"


def make_environments(pipeline: MPDiffuserPipeline, count: int) -> VectorEnv:
    """`count` environments of the pipeline's task, with the observations that it was trained on."""
    environment = whole_episodes(pipeline.config["info"]["environment"])
    return VectorEnv(environment, count, observation=observed(pipeline.record))


def closed_loop(
    policy: Policy, pipeline: MPDiffuserPipeline, seeds: Sequence[int], label: str, probe_every: int = 0
) -> dict[str, Any]:
    """Metrics of a policy in the pipeline's environment, one episode for each seed.

    Args:
        label: of the progress bar. probe_every: see `evaluation.closed_loop.evaluate`.
    """
    environments = make_environments(pipeline, len(seeds))
    try:
        return evaluate([policy], [environments], seeds, probe_every=probe_every, label=label).metrics()
    finally:
        environments.close()


def measure_once(
    file: Path, identity: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], option: str = "--folder"
) -> dict[str, Any]:
    """The result of `measure`, with its identity and date; from the file if the file holds it.

    Args:
        identity: what the result depends on; JSON.
        option: of the command, which chooses the folder; the error names it.

    Raises:
        InputError: if the file holds another result.
    """
    if file.exists():
        found = read_json(file)
        check_identity(found, identity, file, option)
        return found
    result = stamped(identity, measure())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result))
    return read_json(file)


def check_identity(found: Mapping[str, Any], identity: Mapping[str, Any], where: object, option: str) -> None:
    """Raises InputError unless a result has this identity."""
    if found.get("identity") != identity:
        raise InputError(f"{where}: made with other settings; choose another {option}, or remove it")


def stamped(identity: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its identity and today's date."""
    return {"identity": dict(identity), "date": str(datetime.date.today()), **result}


def core_seconds(run: Path) -> dict[str, float]:
    """Processor time of the training thread for each model, from the logs; without validation."""
    result: dict[str, float] = {}
    for log in sorted(run.rglob("log.jsonl")):
        model, last = log.parent.relative_to(run).parts[0], 0
        for line in map(json.loads, log.read_text().splitlines()):
            if "core_s" in line:
                result[model] = result.get(model, 0.0) + line["core_s"] * (line["step"] - last)
                last = line["step"]
    return result


def trained(command: str, output: Path, options: Sequence[str], places: Sequence[str]) -> dict[str, Any]:
    """The metrics of a run with its `core_seconds`, once measured. A run that was cut off resumes.

    Args:
        command: "train_vision.py" or "train_state.py".
        output: the run's folder; the result is in its file measured.json.
        options: of the command.
        places: options that are folders of data, which the result does not depend on.

    Raises:
        InputError: if the file holds a result of other options.
    """

    def measure() -> dict[str, Any]:
        given = [f"output_dir={output}", "trackers=[]", *places, *options]
        subprocess.run([sys.executable, str(ROOT / command), *given], check=True)
        return {**read_json(output / "metrics.json"), "core_seconds": core_seconds(output)}

    identity = {"command": command, "options": list(options)}
    return measure_once(output / "measured.json", identity, measure)


def file_name(name: str) -> str:
    """The name of a setting as that of a file."""
    return f"{name.replace(' ', '_').replace('/', '_').replace(',', '').replace('=', '')}.json"
