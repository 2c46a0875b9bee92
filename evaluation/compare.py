"""Evaluate the methods of a pipeline with the same seeds, and write metrics.json and video.mp4."""

import datetime
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from envs.datasets.tasks import find_offline_task
from envs.doctor import versions
from envs.experts import load_policy
from envs.experts import tasks as tasks_with_experts
from envs.record import check_record, environment_of, whole_episodes
from envs.vector import VectorEnv
from evaluation.check import (
    check_environments,
    check_evaluation,
    check_info,
    check_real_time,
    observed,
    require_models,
)
from evaluation.closed_loop import Outcome, evaluate
from evaluation.film import write_film
from evaluation.real_time import in_real_time
from evaluation.record import PartialResults, evaluation_settings, folder_fingerprint, parallel_controllers
from evaluation.statistics import standard_error, summary
from mpdiffuser.config import settings
from mpdiffuser.controller import Policy
from mpdiffuser.engines import libraries
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json, write_whole, writing
from mpdiffuser.identity import differences
from mpdiffuser.launch import check_samplers
from mpdiffuser.machine import available_cores, cpu_name, git_commit
from mpdiffuser.methods import METHODS, Planning, Setup
from mpdiffuser.methods.mpdiffuser import MPDiffuser
from mpdiffuser.methods.planner import PlannerOnly
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig

VIDEO = "video.mp4"
FILMED = (PlannerOnly.name, MPDiffuser.name)


def prepare(cfg: DictConfig, environment: Mapping[str, Any] | None, output: Path) -> None:
    """Check the evaluation settings before training. Without an expert, remove the methods that need it from cfg.

    Args:
        cfg: the whole configuration.
        environment: record of the environment; None: the data have no environment, and nothing is evaluated.
        output: the run's folder.

    Raises:
        InputError: for a value that is not allowed, or for settings that differ from those in metrics.json of `output`.
    """
    check_evaluation(cfg)
    check_samplers(cfg)
    if environment is not None:
        check_record(environment)
        left_out = [
            each for each in cfg.evaluation.methods if METHODS[each].needs_expert and not find_expert(environment)
        ]
        if left_out:
            cfg.evaluation.methods = [each for each in cfg.evaluation.methods if each not in left_out]
            print(f"note: {', '.join(left_out)} left out: there is no expert of this environment")
            if not cfg.evaluation.methods:
                raise InputError(f"evaluation.methods: there is no expert of {dict(environment)}; choose other methods")
    check_metrics(output / "metrics.json", {"settings": evaluation_settings(cfg)})


def check_metrics(file: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics in a file; None if the file is missing.

    Args:
        file: metrics.json of an evaluation.
        identity: required entries of the metrics.

    Raises:
        InputError: if the file has another evaluation.
    """
    if not file.exists():
        return None
    found = read_json(file)
    differ = differences({key: found.get(key) for key in identity}, dict(identity))
    if differ:
        raise InputError(
            f"{file}: of another evaluation ({'; '.join(differ)}); choose another output_dir= or remove it"
        )
    return found


def find_expert(environment: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the expert of an environment, states (B, o) -> actions (B, m); None if there is no expert."""
    task = environment.get("task")
    return load_policy(task) if task in tasks_with_experts() else None


def use_saved_settings(cfg: DictConfig, pipeline: MPDiffuserPipeline) -> None:
    """Replace options of the section `sampler` that are null by the settings that are saved in the pipeline."""
    saved = dict(pipeline.config["sampler_defaults"])
    cfg.sampler.merge_with(saved | {key: value for key, value in settings(cfg.sampler).items() if value is not None})


def compare(
    cfg: DictConfig,
    folder: Path,
    output: Path,
    stages: Mapping[str, float] | None = None,
    pipeline: MPDiffuserPipeline | None = None,
) -> dict[str, Any]:
    """Evaluate the methods with the same seeds, write metrics.json and video.mp4 into `output`, and return the metrics.

    If `output` has the same evaluation of the same weights, its metrics are returned.

    Args:
        cfg: the configuration, after `prepare`.
        folder: the pipeline folder.
        output: the folder for the results.
        stages: stage of the training -> seconds.
        pipeline: the pipeline of the folder; None: it is loaded.

    Raises:
        InputError: if `output` has another evaluation or one of another pipeline, or if models are missing.
    """
    identity: dict[str, Any] = {"settings": evaluation_settings(cfg), "pipeline": folder_fingerprint(folder)}
    metrics_file = output / "metrics.json"
    found = check_metrics(metrics_file, identity)
    if found:
        print(f"Evaluation: reusing {metrics_file}")
        return found
    pipeline = pipeline or MPDiffuserPipeline.from_pretrained(folder)
    info = pipeline.config["info"]
    check_info(info, cfg.environment)
    check_real_time(cfg, info)
    for name in cfg.evaluation.methods:
        require_models(name, folder, info.get("cost_limits", ()))
    seeds = list(range(cfg.evaluation.first_seed, cfg.evaluation.first_seed + cfg.evaluation.episodes))
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        partial = PartialResults(output / "metrics.partial.json", identity)
        results = run_methods(cfg, pipeline, folder, seeds, partial)
        record: Any = environment_of(cfg.environment, info.get("environment"))
        shown = {row: (METHODS[name], setup) for row, name, setup in policies(cfg, pipeline, folder) if row in FILMED}
        if info.get("cost_limits") and not any(any(method["costs"]) for method in results.values()):
            print('note: no episode cost anything; an environment gives the cost of a step as info["cost"]')
        write_film(output / VIDEO, record, shown, seeds[0], cfg.evaluation.max_decisions)
    metrics = {
        "task": info.get("task") or info.get("file") or folder.absolute().parent.name,
        **{key: info[key] for key in ("suite", "stand_in") if key in info},
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **identity,
        "data": info["data"],
        "levels": info.get("levels", {}),
        "machine": machine(identity["settings"]["sampler"]["engine"]),
        "seeds": seeds,
        "stages": stages or {},
        "methods": results,
    }
    with writing(metrics_file):
        write_whole(metrics_file, json.dumps(metrics, indent=1))
        (output / "metrics.partial.json").unlink(missing_ok=True)
    return metrics


def machine(engine: str) -> dict[str, Any]:
    """Return what the results were computed with: processor, threads, versions (of the engine too) and commit."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "versions": versions() | libraries(engine),
        "commit": git_commit(),
    }


def policies(cfg: DictConfig, pipeline: MPDiffuserPipeline, folder: Path) -> Iterator[tuple[str, str, Setup]]:
    """Yield (row of the table, name of the method, setup of its policy) for each method and each of its cost limits."""
    info = pipeline.config["info"]
    sampler, sections = SamplerConfig(**settings(cfg.sampler)), settings(cfg.baselines)
    record: Any = environment_of(cfg.environment, info.get("environment"))
    probability, expert = cfg.evaluation.safety_probability, find_expert(record)
    for limit in (None, *info.get("cost_limits", ())):
        for name in (name for name in METHODS if name in cfg.evaluation.methods):
            if limit is None or METHODS[name].takes_limits:
                row = name if limit is None else f"{name} within {limit:g}"
                yield row, name, Setup(pipeline, folder, sampler, sections.get(name, {}), limit, probability, expert)


def run_methods(
    cfg: DictConfig,
    pipeline: MPDiffuserPipeline,
    folder: Path,
    seeds: list[int],
    partial: PartialResults,
) -> dict[str, dict[str, Any]]:
    """Return row of the table -> metrics. Rows in `partial` are reused. Methods on states run without rendering."""
    info = pipeline.config["info"]
    record: Any = environment_of(cfg.environment, info.get("environment"))
    rows = {row: (METHODS[name], setup) for row, name, setup in policies(cfg, pipeline, folder)}
    if partial.methods:
        print(f"Evaluation: resuming after {', '.join(partial.methods)}")
    for states in (True, False):
        left = {row: pair for row, pair in rows.items() if pair[0].sees_states == states and row not in partial.methods}
        if not left:
            continue
        observation = "states" if states else observed(pipeline.record)
        counts = [len(part) for part in np.array_split(seeds, parallel_controllers(cfg))]
        processes = max(1, (cfg.processes or available_cores()) // len(counts))
        environments: list[VectorEnv] = []
        try:
            for count in counts:
                environments.append(VectorEnv(whole_episodes(record), count, processes, observation))
            check_environments(environments[0], pipeline, states)
            actions = environments[0].single_action_space
            if cfg.evaluation.probe_every and not states and not environments[0].can_peek:
                print("note: plans are not compared with the simulator, since its state cannot be restored")
            for row, (method, setup) in left.items():
                most = cfg.evaluation.max_decisions
                if cfg.evaluation.real_time and issubclass(method, Planning):
                    outcome = in_real_time(method, setup, record, observation, seeds, row, most)
                    partial.add(row, outcome.metrics() | scores(info, outcome, None))
                    continue
                probe_every = cfg.evaluation.probe_every if method.plans_states else 0
                batch: list[Policy] = [method.policy(replace(setup, action_space=actions)) for _ in counts]
                outcome = evaluate(batch, environments, seeds, probe_every, label=row, max_decisions=most)
                partial.add(row, outcome.metrics() | scores(info, outcome, setup.limit))
        finally:
            for each in environments:
                each.close()
    return {row: partial.methods[row] for row in rows}


def scores(info: Mapping[str, Any], outcome: Outcome, limit: float | None) -> dict[str, Any]:
    """Return the normalised score of the suite and its constants; without a suite neither.

    If there are cost limits, the result also has the mean cost, its ratio to each limit, the share of episodes within
    each limit, and the method's limit.

    Args:
        info: of the pipeline.
        outcome: results of the method.
        limit: the method's limit on the cost of an episode; None: no limit.
    """
    found: dict[str, Any] = {}
    if "suite" in info:
        task = find_offline_task(info["task"], info["suite"])
        values = [task.score(float(value)) for value in outcome.returns]
        found["score"] = summary(np.array(values)) | {"low": task.low, "high": task.high}
    if limits := info.get("cost_limits", ()):
        cost = outcome.costs.mean()
        found["cost"] = {"mean": float(cost), "standard_error": standard_error(outcome.costs)}
        found["normalised_cost"] = {f"{each:g}": float(cost / each) for each in limits}
        found["share_within_limit"] = {f"{each:g}": float((outcome.costs <= each).mean()) for each in limits}
        found["limit"] = limit
    return found
