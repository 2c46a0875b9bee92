"""The command `python evaluate.py` or `mpdiffuser evaluate`, and the evaluation after training."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from evaluation.check import check_info, check_simulator, observed
from evaluation.compare import compare, prepare, use_saved_settings
from evaluation.record import changed_results, load_record
from evaluation.report import write_report
from evaluation.table import table
from mpdiffuser.config import configured
from mpdiffuser.errors import InputError
from mpdiffuser.files import claim, read_json
from mpdiffuser.launch import Clock
from mpdiffuser.pipeline import MPDiffuserPipeline


@configured("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate a saved pipeline in closed loop, or repeat a recorded evaluation and compare the results exactly."""
    folder = Path(cfg.pipeline)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"pipeline: {folder} is not a pipeline folder (no model_index.json in it)")
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    if pipeline.takes_goals:
        raise InputError(
            f"pipeline: {folder} takes goals, and no environment here sets them; use Controller.act(goal=)"
        )
    environment = check_info(pipeline.config["info"], cfg.environment)
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


def evaluate_run(cfg: DictConfig, output: Path, clock: Clock) -> None:
    """Evaluate the trained pipeline in `output`, and print the paths of the results.

    A pipeline is not evaluated if its data have no environment in this program, or if it takes goals.
    """
    OmegaConf.save(cfg, output / "config.yaml")
    folder = output / "pipeline"
    info = read_json(folder / "model_index.json")["info"]
    reasons = {
        "there is no environment": cfg.environment is None and "environment" not in info,
        "evaluation.methods is empty": not cfg.evaluation.methods,
        "no environment here sets goals": cfg.goals,
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        print(f"Pipeline: {folder} (not evaluated in an environment: {reason})")
        return
    with clock("evaluate"):
        metrics = compare(cfg, folder, output, clock.seconds)
    print(table(metrics))
    if (output / "video.mp4").exists():
        print(f"Video:  {output / 'video.mp4'}")
    print(f"Report: {write_report(output)}")
