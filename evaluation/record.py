"""Records of an evaluation, so that it can be resumed, or repeated with exactly the same results."""

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
    """Return the settings that the results depend on: those of the evaluation and of the samplers of its methods.

    The last digits of plans depend on the engine and on the number of parallel controllers. So "auto" and null are
    replaced by their values on this machine.
    """
    sections = {name: settings(section) for name, section in {"sampler": cfg.sampler, **cfg.baselines}.items()}
    for section in sections.values():
        if "engine" in section:
            section["engine"] = resolved(section["engine"], torch.device("cpu"))
    baselines = {name: sections[name] for name in METHODS if name in cfg.evaluation.methods and name in sections}
    evaluation = settings(cfg.evaluation) | {"parallel_controllers": parallel_controllers(cfg)}
    if cfg.environment is not None:
        evaluation["environment"] = cfg.environment
    if cfg.get("cost_limits") is not None:  # of a training; later the pipeline's
        evaluation["cost_limits"] = [*cfg.cost_limits]
    return {**evaluation, "sampler": sections["sampler"], "baselines": baselines}


def parallel_controllers(cfg: DictConfig) -> int:
    """Return the number of controllers that run in parallel, each with a part of the episodes."""
    return min(cfg.evaluation.parallel_controllers or available_cores(), cfg.evaluation.episodes)


class PartialResults:
    """The results of the finished methods, in a file, so that an interrupted evaluation can be resumed.

    Args:
        file: the JSON file. A file of another evaluation is replaced.
        identity: the settings and the pipeline of the evaluation.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.identity = file, identity
        found = read_json(file) if file.exists() else {}
        fits = {key: found.get(key) for key in identity} == identity
        self.methods: dict[str, dict[str, Any]] = found["methods"] if fits else {}

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Add the results of a row and write the file."""
        self.methods[name] = result
        write_whole(self.file, json.dumps(self.identity | {"methods": self.methods}))


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hex digits of the SHA-256 of a pipeline folder's files, without the manifest."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def load_record(file: Path, cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Return the metrics of an earlier evaluation, and copy its settings to cfg.

    Args:
        file: metrics.json of the evaluation.
        cfg: the configuration; its settings are replaced.
        folder: the pipeline folder.

    Raises:
        InputError: if the evaluation used another pipeline, or a deadline or real time, as the results then depend on
            the clock.
    """
    metrics = read_json(file)
    missing = [key for key in ("settings", "pipeline", "machine", "methods") if not metrics.get(key)]
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; not the metrics.json of an evaluation")
    if metrics["pipeline"] != folder_fingerprint(folder):
        raise InputError(
            f"{file}: of the pipeline {metrics['pipeline']}, found {folder_fingerprint(folder)} in {folder}"
        )
    try:
        found = dict(metrics["settings"])
        sampler, baselines = found.pop("sampler"), found.pop("baselines")
        environment = found.pop("environment", None)
        found.pop("cost_limits", None)
        deadline = sampler["deadline_ms"]
        cfg.sampler.merge_with(sampler)
        cfg.baselines.merge_with(baselines)
        cfg.evaluation.merge_with(found)
        cfg.threads = metrics["machine"]["threads"]
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: settings that this version does not know ({error!r})") from error
    if environment != cfg.environment:  # code that a file names is never run
        raise InputError(f"{file}: of environment={environment}, found {cfg.environment}; give the same environment=")
    if deadline:
        raise InputError(f"{file}: sampler.deadline_ms is {deadline}: an evaluation under a deadline is not repeatable")
    if cfg.evaluation.real_time:
        raise InputError(f"{file}: evaluation.real_time is true: an evaluation in real time is not repeatable")
    return metrics


def changed_results(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return one phrase for each difference between the results of two evaluations; times are not compared."""
    result = []
    for name, method in first["methods"].items():
        for key in ("returns", "lengths", "costs", "feasibility", "fallbacks", "levels"):
            a, b = method.get(key), second["methods"].get(name, {}).get(key)
            if a != b:
                result.append(f"{name}.{key}: {a} there, {b} now")
    return result
