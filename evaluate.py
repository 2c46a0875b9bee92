"""Evaluate a pipeline in closed loop: python evaluate.py pipeline=results/cartpole_swingup-mixed/pipeline"""

import datetime
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig

import vision  # noqa: F401  the classes that a pipeline folder may name
from envs.doctor import versions
from envs.experts import Policy, load_policy
from envs.rendering import back_end
from envs.tasks import find_offline_task
from envs.vector import VectorEnv
from mpdiffuser.budget import Budget
from mpdiffuser.config import configured, settings
from mpdiffuser.controller import Acting, CloningController, Controller, RandomController
from mpdiffuser.distillation import distilled, distilled_config
from mpdiffuser.engines import libraries, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.evaluation import Outcome, evaluate
from mpdiffuser.files import claim, read_json, write_whole, writing
from mpdiffuser.machine import available_cores, cpu_name, git_commit
from mpdiffuser.models.cloning import BehaviourCloning
from mpdiffuser.models.iql import IQL
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import Kept, differences, evaluated, folder_fingerprint, recorded
from mpdiffuser.report import explained, write_report
from mpdiffuser.rivals import RIVALS, require_models, rival_config
from mpdiffuser.statistics import standard_error, summary
from mpdiffuser.training import sampler_config
from mpdiffuser.video import write_video
from vision.decoder import Decoder

METHODS = ("random", "cloning", "iql", *RIVALS, "planner", "ours", "distilled", "expert")
PLANNING = ("planner", "ours", "distilled")
FILM_AHEAD = (2, 4, 8, 12)


class ExpertController:
    """The data's expert, which sees the true states."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seeds: Sequence[int]) -> None:
        pass

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        return self.policy(observations)


def controllers(cfg: DictConfig, pipeline: MPDiffuserPipeline, folder: Path) -> dict[str, Callable[[], Acting]]:
    """How to make each method's controller."""
    info = pipeline.config["info"]

    def policy(kind: Any, name: str) -> Acting:
        return CloningController(
            pipeline.encoder, kind.from_pretrained(folder / name, use_safetensors=True).eval().to(pipeline.device)
        )

    def planning(name: str, limit: float | None = None) -> Acting:
        budget, drawing = None, pipeline
        config = sampler_config(cfg.sampler, pipeline.sees_pixels, limit is not None)
        if limit is not None:
            budget = Budget(
                limit, info.get("episode_steps", 0), info.get("cost_margins"), cfg.evaluation.within or None
            )
        if name == "planner":
            config = replace(config, composition="planner")
        elif name == "distilled":
            drawing, config = distilled(pipeline, folder), distilled_config(config, info)
        return Controller(drawing, config, cfg.sampler.chunk, cfg.sampler.safe_action, budget)

    made: dict[str, Callable[[], Acting]] = {
        "random": lambda: RandomController(pipeline.actions.config["dim"]),
        "cloning": lambda: policy(BehaviourCloning, "cloning"),
        "iql": lambda: policy(IQL, "iql"),
        **{name: partial(rival_controller, cfg, pipeline, folder, name) for name in RIVALS},
        **{name: partial(planning, name) for name in PLANNING},
        "expert": lambda: ExpertController(load_policy(info["task"])),
    }
    for limit in info.get("cost_limits", ()):  # these methods can be told a limit
        made[f"cloning within {limit:g}"] = partial(policy, BehaviourCloning, f"cloning_within_{limit:g}")
        made |= {f"{name} within {limit:g}": partial(planning, name, limit) for name in PLANNING}
    return {name: make for name, make in made.items() if name.partition(" ")[0] in cfg.evaluation.methods}


def rival_controller(cfg: DictConfig, pipeline: MPDiffuserPipeline, folder: Path, name: str) -> Controller:
    """A rival with its own models and settings, controlling as ours does."""
    rival, section = RIVALS[name].load(pipeline, folder), settings(cfg.rivals[name])
    return Controller(rival, rival_config(name, section), section["chunk"])


def check(cfg: DictConfig) -> None:
    """Raises InputError for an evaluation that cannot be; called before any training."""
    sampler_config(cfg.sampler)  # for its errors
    section = cfg.evaluation
    if not section.methods or set(section.methods) - set(METHODS):
        raise InputError(f"evaluation.methods: must be of {', '.join(METHODS)}; found {list(section.methods)}")
    for name, least in (("episodes", 1), ("first_seed", 0), ("probe_every", 0), ("shares", 1)):
        if section[name] is not None and section[name] < least:
            raise InputError(f"evaluation.{name}: must be at least {least}, found {section[name]}")
    if not 0 <= (section.within or 0) < 1:
        raise InputError(f"evaluation.within: must be at least 0 and below 1, found {section.within}")


def compare(cfg: DictConfig, folder: Path, output: Path, stages: dict[str, float] | None = None) -> dict[str, Any]:
    """Evaluate the methods on the same seeds; write metrics.json and video.mp4 into `output`.

    A folder that holds this very evaluation of these very weights already is reused.

    Raises:
        InputError: for a folder with another evaluation, or of another pipeline.
    """
    resolve_engines(cfg)
    resolve_shares(cfg)
    identity = {"settings": evaluated(cfg), "pipeline": folder_fingerprint(folder)}
    metrics_file = output / "metrics.json"
    if metrics_file.exists():
        found = read_json(metrics_file)
        differ = [key for key, value in identity.items() if found.get(key) != value]
        if differ:
            there, now = found.get(differ[0]), identity[differ[0]]
            raise InputError(
                f"{metrics_file}: made with another {differ[0]}: {there} there, {now} now; choose another output_dir= "
                "or remove it"
            )
        print(f"Evaluation: reusing {metrics_file}")
        return found
    for name in cfg.evaluation.methods:
        require_models(name, folder)
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    info = pipeline.config["info"]
    check_record(cfg, info)
    seeds = list(range(cfg.evaluation.first_seed, cfg.evaluation.first_seed + cfg.evaluation.episodes))
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        results = run_methods(cfg, pipeline, folder, output, seeds, Kept(output / "metrics.partial.json", identity))
    metrics = {
        "task": info["task"],
        **{key: info[key] for key in ("suite", "stand_in") if key in info},
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **identity,
        "data": info["data"],
        "machine": {
            "cpu": cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "versions": versions() | libraries(cfg.sampler.engine),
            "commit": git_commit(),
        },
        "seeds": seeds,
        "stages": stages or {},
        "methods": results,
    }
    with writing(metrics_file):
        write_whole(metrics_file, json.dumps(metrics, indent=1))
        (output / "metrics.partial.json").unlink(missing_ok=True)
    return metrics


def resolve_engines(cfg: DictConfig) -> None:
    """Put what "auto" stands for here into cfg: a repetition needs to know."""
    for section in (cfg.sampler, *(cfg.rivals[name] for name in RIVALS)):
        section.engine = resolved(section.engine, torch.device("cpu"))
    print(f"Engine: {cfg.sampler.engine}")


def resolve_shares(cfg: DictConfig) -> None:
    """Put the shares of the episodes into cfg: a repetition needs to know, as the last digits of a plan depend on how
    many are drawn together."""
    section = cfg.evaluation
    section.shares = min(section.shares or available_cores(), section.episodes)


def run_methods(
    cfg: DictConfig, pipeline: MPDiffuserPipeline, folder: Path, output: Path, seeds: list[int], kept: Kept
) -> dict[str, dict[str, Any]]:
    """Metrics of each method, but for those kept; those that need no pixels run without rendering."""
    info = pipeline.config["info"]
    makers = controllers(cfg, pipeline, folder)
    if kept.methods:
        print(f"Evaluation: going on after {', '.join(kept.methods)}")
    for blind in (True, False):
        wanted = [name for name in makers if (name in ("random", "expert")) == blind]
        names = [name for name in wanted if name not in kept.methods]
        if not names:
            continue
        options = environment_options(info, blind)
        shares = [len(part) for part in np.array_split(seeds, cfg.evaluation.shares)]
        processes = max(1, (cfg.processes or available_cores()) // len(shares))
        environments: list[VectorEnv] = []
        try:
            for count in shares:
                environments.append(VectorEnv(count, processes, **options))
            check_environment(environments[0], pipeline, blind)
            for name in names:
                film = name == "ours" and pipeline.decoder is not None
                foresees = name not in RIVALS or RIVALS[name].foresees
                probe_every = cfg.evaluation.probe_every if foresees else 0
                acting = [makers[name]() for _ in shares]
                outcome = evaluate(acting, environments, seeds, probe_every, film, label=name)
                if film:
                    print(f"Video: {write_film(output / 'video.mp4', outcome, pipeline.decoder)}")
                _, told, limit = name.partition(" within ")
                kept.add(name, outcome.metrics() | scores(info, outcome, float(limit) if told else None))
        finally:
            for batch in environments:
                batch.close()
    return {name: kept.methods[name] for name in makers}


def environment_options(info: dict[str, Any], blind: bool) -> dict[str, Any]:
    """What `VectorEnv` needs to make the pipeline's environment; blind: without pixels.

    Raises:
        InputError: if the pipeline's record lacks something, or holds what is no option of an environment.
    """
    if "environment" in info:
        options = info["environment"]
        if not isinstance(options, dict) or set(options) - {"env_id", "speed_limit"}:
            raise InputError(f"the pipeline's info.environment: must hold env_id and speed_limit, found {options}")
        return options
    missing = [key for key in ("task", "action_repeat", "size", "camera", "rendering") if key not in info]
    if missing:
        raise InputError(f"the pipeline's info: {missing[0]} is missing; train it again")
    options = {key: info[key] for key in ("task", "action_repeat", "size", "camera", "rendering")}
    return options | {"observation": "states" if blind else "frames"}


def scores(info: dict[str, Any], outcome: Outcome, limit: float | None) -> dict[str, Any]:
    """The suite's normalised score, the constants it was computed with, and where there are costs what part of each
    limit they are, how many episodes keep to it, and the limit that the method was told."""
    if "suite" not in info:
        return {}
    task = find_offline_task(info["task"], info["suite"])
    values = [task.score(float(value)) for value in outcome.returns]
    if None in values:
        return {}
    found: dict[str, Any] = {"score": summary(np.array(values)) | {"low": task.low, "high": task.high}}
    if task.limits:
        cost = outcome.costs.mean()
        found["cost"] = {"mean": float(cost), "standard_error": standard_error(outcome.costs)}
        found["normalised_cost"] = {f"{each:g}": float(cost / each) for each in task.limits}
        found["within"] = {f"{each:g}": float((outcome.costs <= each).mean()) for each in task.limits}
        found["limit"] = limit
    return found


def check_record(cfg: DictConfig, info: dict[str, Any]) -> None:
    """Environments and pictures must be as in the training data.

    Raises:
        InputError: if another one is asked for. Another rendering back-end draws nearly alike: that is only told.
    """
    missing = [key for key in ("task", "data") if key not in info]
    if missing:
        raise InputError(f"the pipeline's info: {missing[0]} is missing; train it again")
    for name in ("rendering", "size", "action_repeat", "camera"):
        wanted = cfg.get(name)
        if name in info and wanted not in (None, info[name]):
            raise InputError(f"{name}: the pipeline was trained with {info[name]!r}, found {wanted!r}; leave it null")
    if cfg.get("task_name") not in (None, info["task"]):
        raise InputError(f"task_name: the pipeline was trained on {info['task']!r}, found {cfg.task_name!r}")
    if "back_end" in info and back_end() != info["back_end"].partition(":")[0]:
        print(f"note: rendering with {back_end()}, the data with {info['back_end']}; pixels differ a little")


def check_environment(environments: VectorEnv, pipeline: MPDiffuserPipeline, blind: bool) -> None:
    """Raises InputError unless actions, and observations if not blind, are what the pipeline was trained on."""
    actions, seen = environments.single_action_space, environments.single_observation_space
    assert isinstance(actions, gymnasium.spaces.Box)
    found: dict[str, Any] = {
        "actions": actions.shape,
        "low": float(actions.low.min()),
        "high": float(actions.high.max()),
    }
    record: dict[str, Any] = {"actions": (pipeline.actions.config["dim"],), "low": -1.0, "high": 1.0}
    if not blind and "observation" in pipeline.config["info"]:
        noted = pipeline.config["info"]["observation"]
        found |= {"observations": seen.shape, "dtype": str(seen.dtype)}
        record |= {"observations": tuple(noted["shape"]), "dtype": noted["dtype"]}
    if "decision_seconds" in pipeline.config["info"]:
        found["decision_seconds"] = environments.decision_seconds
        record["decision_seconds"] = pipeline.config["info"]["decision_seconds"]
    for key, value in record.items():
        if found[key] != value:
            raise InputError(f"environment: {key} {found[key]}, but the pipeline was trained with {value}")


def write_film(file: Path, outcome: Outcome, decoder: Decoder) -> Path:
    """The first episode, real frames beside the decoded plan."""
    scenes = [scene for scene in outcome.film if "plan" in scene]
    ahead = [k for k in FILM_AHEAD if k < min(len(scene["plan"]) for scene in scenes)]
    plans = np.stack([scene["plan"][ahead] for scene in scenes])
    flat = torch.from_numpy(plans).flatten(0, 1).to(decoder.device)
    imagined = decoder.frames(flat).cpu().numpy().reshape(*plans.shape[:2], *scenes[0]["frame"].shape)
    captions = [f"decision {i}, return so far {scene['return']:.0f}" for i, scene in enumerate(scenes)]
    return write_video(file, np.stack([scene["frame"] for scene in scenes]), imagined, ahead, captions, 25)


def table(metrics: dict[str, Any]) -> str:
    """Returns of all methods, a line each; from a suite's data also its score, costs, and what these numbers are."""
    times = f"{'plan ms':>9s} {'one':>8s} {'action':>8s}"  # a plan for all environments, for one, an action for one
    head = f"{'method':17s} {'return':>8s} {'±se':>6s} {'IQM':>8s}  95 % interval {times:>29s}  1-step error"
    lines, suite = [], any("score" in m for m in metrics["methods"].values())
    for name, m in metrics["methods"].items():
        low, high = m["iqm_interval"]
        clocks = [m[key]["median"] for key in ("plan_ms", "plan_ms_single", "action_ms_single") if key in m]
        times = " ".join(f"{median:8.1f}" for median in clocks)
        error = f"{m['feasibility']['1']['mean']:.4f}" if "feasibility" in m else ""
        line = f"{name:17s} {m['mean']:8.1f} {m['standard_error']:6.1f} {m['iqm']:8.1f}  [{low:.1f}, {high:.1f}]"
        lines.append(f"{line}{times:>28s}{error:>12s}{_score(m) if suite else ''}")
    return "\n".join([head + ("     score      cost  within" if suite else ""), *lines, *explained(metrics)])


def _score(m: dict[str, Any]) -> str:
    score = f"{m['score']['mean']:10.3f}" if "score" in m else ""
    cost = f"{m['cost']['mean']:10.1f}" if "cost" in m else ""
    limit = m.get("limit")
    return f"{score:10s}{cost:10s}" + (f"{m['within'][f'{limit:g}']:8.0%}" if limit is not None else "")


@configured("evaluate")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.pipeline)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"pipeline: {folder} is not a pipeline folder (no model_index.json in it)")
    before = recorded(Path(cfg.repeat), cfg, folder) if cfg.repeat else None
    check(cfg)
    torch.set_num_threads(cfg.threads)
    output = Path(cfg.output_dir or folder.parent / ("repeated" if before else "evaluation"))
    claim(output, "wait for it, or choose another output_dir=")
    metrics = compare(cfg, folder, output)
    print(table(metrics))
    print(f"Metrics: {output / 'metrics.json'}\nReport: {write_report(output)}")
    if before:
        differ = differences(before, metrics)
        if differ:
            raise InputError(f"repeat: {cfg.repeat} is not what came out: {'; '.join(differ)[:1000]}")
        print(f"Repeated: returns, lengths, costs and feasibility errors are those of {cfg.repeat}, digit for digit")


if __name__ == "__main__":
    main()
