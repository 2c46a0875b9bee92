"""The command `python evaluate.py` or `mpdiffuser evaluate`, and the evaluation after training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from envs.record import environment_of
from evaluation.check import check_info, check_simulator, gives_goals, observed
from evaluation.compare import compare, prepare, use_saved_settings
from evaluation.record import changed_results, load_record
from evaluation.report import write_report
from evaluation.table import table
from mpdiffuser.config import configured
from mpdiffuser.errors import InputError
from mpdiffuser.files import claim, read_json
from mpdiffuser.launch import Clock
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import Record

NO_GOAL = "the environment gives none: no observation info['goal'] at its reset"


@configured("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate a saved pipeline in closed loop, or repeat a recorded evaluation and compare the results exactly."""
    folder = Path(cfg.pipeline)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"pipeline: {folder} is not a pipeline folder (no model_index.json in it)")
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    environment = check_info(pipeline.config["info"], cfg.environment)
    if pipeline.takes_goals and not gives_goals(environment, observed(pipeline.record)):
        raise InputError(f"pipeline: {folder} takes goals, but {NO_GOAL}; use Controller.act(goal=)")
    earlier = load_record(Path(cfg.repeat), cfg, folder) if cfg.repeat else None
    output = Path(cfg.output_dir or folder.parent / ("repeated" if earlier else "evaluation"))
    use_saved_settings(cfg, pipeline)
    prepare(cfg, environment, output)
    if pipeline.sees_pixels:
        check_simulator(cfg, environment, observed(pipeline.record))
    torch.set_num_threads(cfg.threads)
    claim(output, "wait for it, or choose another output_dir=")
    metrics = compare(cfg, folder, output, pipeline=pipeline)
    print(table(metrics))
    print(f"Metrics: {output / 'metrics.json'}\nReport: {write_report(output)}")
    if earlier:
        differ = changed_results(earlier, metrics)
        if differ:
            raise InputError(f"repeat: the results differ from {cfg.repeat}: {'; '.join(differ)[:1000]}")
        print(f"Repeated: returns, lengths, costs and feasibility errors equal those of {cfg.repeat}, digit for digit")


def evaluate_run(cfg: DictConfig, output: Path, clock: Clock, accelerator: Accelerator) -> None:
    """Evaluate the trained pipeline in `output`, print the paths of the results, and log them with the trackers.

    A pipeline is not evaluated without an environment, or if it takes goals and the environment gives none.
    """
    OmegaConf.save(cfg, output / "config.yaml")
    folder = output / "pipeline"
    info = read_json(folder / "model_index.json")["info"]
    if reason := why_not_evaluated(cfg, info):
        print(f"Pipeline: {folder} (not evaluated in an environment: {reason})")
        return
    with clock("evaluate"):
        metrics = compare(cfg, folder, output, clock.seconds)
    print(table(metrics))
    if (output / "video.mp4").exists():
        print(f"Video:  {output / 'video.mp4'}")
    print(f"Report: {write_report(output)}")
    accelerator.log(scalars(metrics))


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the results as numbers with names such as "evaluation/mpdiffuser/return", for trackers."""
    found: dict[str, float] = {}
    for row, method in metrics["methods"].items():
        values = {"return": method["mean"], "return_standard_error": method["standard_error"]}
        values |= {key: method[key]["mean"] for key in ("score", "cost") if key in method}
        if "1" in method.get("feasibility", {}):
            values["plan_error"] = method["feasibility"]["1"]["mean"]
        found |= {f"evaluation/{row}/{key}": float(value) for key, value in values.items()}
    return found


def why_not_evaluated(cfg: DictConfig, info: Mapping[str, Any]) -> str | None:
    """Return the reason for which a trained pipeline with this info is not evaluated; None: it is evaluated."""
    environment = environment_of(cfg.environment, info.get("environment"))
    if environment is None:
        return "there is no environment; evaluate.py takes one with environment="
    if not cfg.evaluation.methods:
        return "evaluation.methods is empty"
    record = Record.from_json(info["record"], "the pipeline's info.record")
    if cfg.goals and not gives_goals(environment, observed(record)):
        return f"the planner takes goals, but {NO_GOAL}"
    return None
