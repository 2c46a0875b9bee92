"""What is recorded of an evaluation, so that it can resume after a cut, and be repeated digit for digit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mpdiffuser.config import settings
from mpdiffuser.engines import resolved
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, read_json, write_whole
from mpdiffuser.machine import available_cores
from mpdiffuser.methods import METHODS


def evaluation_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that the outcome depends on: those of the evaluation, and of each sampler that takes part.

    The engine and the number of parallel controllers decide the last digits of plans, so "auto" and null are replaced
    by what they mean on this machine.
    """
    sections = {name: settings(section) for name, section in {"sampler": cfg.sampler, **cfg.baselines}.items()}
    for section in sections.values():
        if "engine" in section:
            section["engine"] = resolved(section["engine"], torch.device("cpu"))
    baselines = {name: sections[name] for name in METHODS if name in cfg.evaluation.methods and name in sections}
    evaluation = settings(cfg.evaluation) | {"parallel_controllers": parallel_controllers(cfg)}
    return {**evaluation, "sampler": sections["sampler"], "baselines": baselines}


def parallel_controllers(cfg: DictConfig) -> int:
    """Number of controllers that act in parallel, each on a part of the episodes."""
    return min(cfg.evaluation.parallel_controllers or available_cores(), cfg.evaluation.episodes)


class PartialResults:
    """Results of the methods that are done, in a file, so that an evaluation that was cut off resumes after them.

    Args:
        file: where; a file of another evaluation is replaced.
        identity: of the evaluation.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.identity = file, identity
        found = read_json(file) if file.exists() else {}
        fits = {key: found.get(key) for key in identity} == identity
        self.methods: dict[str, dict[str, Any]] = found["methods"] if fits else {}

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Record a method's results."""
        self.methods[name] = result
        write_whole(self.file, json.dumps(self.identity | {"methods": self.methods}))


def folder_fingerprint(folder: Path) -> str:
    """A name for the content of a pipeline folder, wherever it lies. The manifest follows from the other files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def load_record(file: Path, cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The metrics of an earlier evaluation; its settings are put into cfg.

    Raises:
        InputError: if it was of another pipeline, or drew plans under a deadline, which depends on the clock.
    """
    metrics = read_json(file)
    missing = [key for key in ("settings", "pipeline", "machine", "methods") if not metrics.get(key)]
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; not the metrics.json of an evaluation")
    if metrics["pipeline"] != folder_fingerprint(folder):
        raise InputError(
            f"{file}: of the pipeline {metrics['pipeline']}, found {folder_fingerprint(folder)} in {folder}"
        )
    found = dict(metrics["settings"])
    try:
        sampler, baselines = found.pop("sampler"), found.pop("baselines")
        deadline = sampler["deadline_ms"]
        cfg.sampler.merge_with(sampler)
        cfg.baselines.merge_with(baselines)
        cfg.evaluation.merge_with(found)
        cfg.threads = metrics["machine"]["threads"]
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        raise InputError(f"{file}: settings that this version does not know ({error!r})") from error
    if deadline:
        raise InputError(f"{file}: sampler.deadline_ms is {deadline}: an evaluation under a deadline is not repeatable")
    return metrics


def changed_results(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Where the results of two evaluations differ, apart from times."""
    result = []
    for name, method in first["methods"].items():
        for key in ("returns", "lengths", "costs", "feasibility", "fallbacks", "levels"):
            a, b = method.get(key), second["methods"].get(name, {}).get(key)
            if a != b:
                result.append(f"{name}.{key}: {a} there, {b} now")
    return result
