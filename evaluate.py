"""Evaluate a pipeline in closed loop: python evaluate.py pipeline=results/cartpole_swingup-mixed/pipeline"""

import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

import vision  # noqa: F401  the classes that a pipeline folder may name
from envs.doctor import versions
from envs.experts import Policy, load_policy
from envs.rendering import back_end
from envs.vector import VectorEnv, available_cores
from mpdiffuser.config import configured
from mpdiffuser.controller import Acting, CloningController, Controller, RandomController
from mpdiffuser.errors import InputError
from mpdiffuser.evaluation import Outcome, evaluate
from mpdiffuser.models.cloning import BehaviourCloning
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.report import write_report
from mpdiffuser.training import sampler_config
from mpdiffuser.video import write_video
from vision.decoder import Decoder

METHODS = ("random", "cloning", "planner", "ours", "expert")
FILM_AHEAD = (2, 4, 8, 12)


class ExpertController:
    """The data's expert, which sees the true states."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seeds: Sequence[int]) -> None:
        pass

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self.policy(observations)


def controllers(cfg: DictConfig, pipeline: MPDiffuserPipeline, folder: Path) -> dict[str, Callable[[], Acting]]:
    """How to make each method's controller."""
    config = sampler_config(cfg.sampler)
    return {
        "random": lambda: RandomController(pipeline.planner.config["action_dim"]),
        "cloning": lambda: CloningController(
            pipeline.encoder, BehaviourCloning.from_pretrained(folder / "cloning").to(pipeline.device)
        ),
        "planner": lambda: Controller(pipeline, replace(config, composition="planner"), cfg.sampler.chunk),
        "ours": lambda: Controller(pipeline, config, cfg.sampler.chunk),
        "expert": lambda: ExpertController(load_policy(pipeline.config["info"]["task"])),
    }


def compare(cfg: DictConfig, folder: Path, output: Path, stages: dict[str, float] | None = None) -> dict[str, Any]:
    """Evaluate the methods on the same seeds; write metrics.json, video.mp4 and report.html into `output`.

    A folder that holds this very evaluation already is reused.

    Raises:
        InputError: for an unknown method, or a folder with another evaluation.
    """
    settings = OmegaConf.to_container(cfg.evaluation) | {"sampler": OmegaConf.to_container(cfg.sampler)}
    metrics_file = output / "metrics.json"
    if metrics_file.exists():
        found = json.loads(metrics_file.read_text())
        if found["settings"] != settings:
            raise InputError(f"{metrics_file}: made with other settings; choose another output_dir= or remove it")
        print(f"Evaluation: reusing {metrics_file}")
        return found
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    info = pipeline.config["info"]
    makers = controllers(cfg, pipeline, folder)
    unknown = set(cfg.evaluation.methods) - set(makers)
    if unknown or not cfg.evaluation.methods:
        raise InputError(f"evaluation.methods: must be of {', '.join(METHODS)}; found {sorted(unknown)}")
    check_rendering(cfg.rendering, info)
    seeds = list(range(cfg.evaluation.first_seed, cfg.evaluation.first_seed + cfg.evaluation.episodes))
    options = {key: info[key] for key in ("task", "action_repeat", "size", "camera", "rendering")}
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for blind in (True, False):  # methods that need no pixels run without rendering
        names = [name for name in cfg.evaluation.methods if (name in ("random", "expert")) == blind]
        if not names:
            continue
        environments = VectorEnv(len(seeds), cfg.processes, observation="states" if blind else "frames", **options)
        try:
            for name in names:
                film = name == "ours"
                probe = cfg.evaluation.probe_every
                outcome = evaluate(makers[name](), environments, seeds, None, probe, film, name)
                results[name] = outcome.metrics()
                if film and pipeline.decoder is not None:
                    film_file = write_film(output / "video.mp4", outcome, pipeline.decoder, options)
                    print(f"Video: {film_file}")
        finally:
            environments.close()
    metrics = {
        "task": info["task"],
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": settings,
        "data": info["data"],
        "machine": {
            "cpu": cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        "seeds": seeds,
        "stages": stages or {},
        "methods": {name: results[name] for name in METHODS if name in results},
    }
    partial = output / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=1))
    partial.rename(metrics_file)
    return metrics


def check_rendering(wanted: str | None, info: dict[str, Any]) -> None:
    """Pictures must be drawn as in the training data.

    Raises:
        InputError: if another rendering mode is asked for. Another back-end draws nearly alike: that is only told.
    """
    if wanted not in (None, info["rendering"]):
        raise InputError(
            f"rendering: the pipeline was trained on {info['rendering']!r} pictures, found {wanted!r}; leave it null"
        )
    if back_end() != info["back_end"].partition(":")[0]:
        print(f"note: rendering with {back_end()}, the data with {info['back_end']}; pixels differ a little")


def write_film(file: Path, outcome: Outcome, decoder: Decoder, options: dict[str, Any]) -> Path:
    """The first episode, real frames beside the decoded plan."""
    scenes = [scene for scene in outcome.film if "plan" in scene]
    ahead = [k for k in FILM_AHEAD if k < min(len(scene["plan"]) for scene in scenes)]
    plans = np.stack([scene["plan"][ahead] for scene in scenes])
    flat = torch.from_numpy(plans).flatten(0, 1).to(decoder.device)
    imagined = decoder.frames(flat).cpu().numpy().reshape(*plans.shape[:2], *scenes[0]["frame"].shape)
    captions = [f"decision {i}, return so far {scene['return']:.0f}" for i, scene in enumerate(scenes)]
    return write_video(file, np.stack([scene["frame"] for scene in scenes]), imagined, ahead, captions, 25)


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(metrics: dict[str, Any]) -> str:
    """Returns of all methods, a line each."""
    lines = [
        f"{'method':10s} {'return':>8s} {'±se':>6s} {'IQM':>8s}  95 % interval    plan ms (batch, one)  1-step error"
    ]
    for name, m in metrics["methods"].items():
        low, high = m["iqm_interval"]
        times = f"{m['plan_ms']['median']:8.0f} {m['plan_ms_single']['median']:8.1f}" if "plan_ms" in m else " " * 17
        error = f"{m['feasibility']['1']['mean']:12.4f}" if "feasibility" in m else ""
        lines.append(
            f"{name:10s} {m['mean']:8.1f} {m['standard_error']:6.1f} {m['iqm']:8.1f}  [{low:.1f}, {high:.1f}]"
            f"{times:>22s}{error}"
        )
    return "\n".join(lines)


@configured("evaluate")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.pipeline)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"pipeline: {folder} is not a pipeline folder (no model_index.json in it)")
    torch.set_num_threads(cfg.threads)
    output = Path(cfg.output_dir or folder.parent / "evaluation")
    metrics = compare(cfg, folder, output)
    print(table(metrics))
    print(f"Metrics: {output / 'metrics.json'}\nReport: {write_report(output)}")


if __name__ == "__main__":
    main()
