"""What is noted of an evaluation, so that it can go on after a cut, and be done again digit for digit."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mpdiffuser.config import settings
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, read_json, write_whole
from mpdiffuser.rivals import RIVALS


def evaluated(cfg: DictConfig) -> dict[str, Any]:
    """The settings that an evaluation's outcome depends on: its own, and those of each sampler that takes part."""
    samplers = {"sampler": cfg.sampler} | {name: cfg.rivals[name] for name in RIVALS if name in cfg.evaluation.methods}
    return {**settings(cfg.evaluation), **{name: settings(section) for name, section in samplers.items()}}


class Kept:
    """Results of the methods that are done, in a file, so that an evaluation that was cut off goes on after them.

    Args:
        file: where; one of another evaluation is started anew.
        identity: what the evaluation is of.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.identity = file, identity
        found = read_json(file) if file.exists() else {}
        fits = {key: found.get(key) for key in identity} == identity
        self.methods: dict[str, dict[str, Any]] = found["methods"] if fits else {}

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.methods[name] = result
        write_whole(self.file, json.dumps(self.identity | {"methods": self.methods}))


def folder_fingerprint(folder: Path) -> str:
    """A name for the content of a pipeline folder, wherever it lies; its manifest follows from the rest."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def recorded(file: Path, cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The metrics of an earlier evaluation, and its settings put into cfg.

    Raises:
        InputError: if it was of another pipeline, or its plans were drawn under a deadline, which no clock repeats.
    """
    metrics = read_json(file)
    missing = [key for key in ("settings", "pipeline", "machine", "methods") if not metrics.get(key)]
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; not the metrics.json of an evaluation")
    if metrics["pipeline"] != folder_fingerprint(folder):
        raise InputError(
            f"{file}: of the pipeline {metrics['pipeline']}, found {folder_fingerprint(folder)} in {folder}"
        )
    noted = dict(metrics["settings"])
    if noted["sampler"]["deadline_ms"]:
        raise InputError(f"{file}: sampler.deadline_ms is {noted['sampler']['deadline_ms']}: clocks do not repeat")
    try:
        for name, section in {"sampler": cfg.sampler, **cfg.rivals}.items():
            if name in noted:  # who computed was no question before there were engines for all
                section.merge_with({"engine": "torch"} | noted.pop(name))
        cfg.evaluation.merge_with({"shares": 1} | noted)
        cfg.threads = metrics["machine"]["threads"]
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: settings that this version does not know ({error})") from error
    return metrics


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Where two evaluations differ, times aside."""
    result = []
    for name, method in first["methods"].items():
        for key in ("returns", "lengths", "costs", "feasibility", "fallbacks", "levels"):
            a, b = method.get(key), second["methods"].get(name, {}).get(key)
            if a != b:
                result.append(f"{name}.{key}: {a} there, {b} now")
    return result
