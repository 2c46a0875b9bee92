"""From logged states to a controlled robot: accelerate launch train_state.py task=d4rl/hopper-medium-v2

Reads the task's public file (data_dir= says where it lies), trains what the method needs (method=ours by default, or a
rival of docs/methods.md, or all), controls the task in gymnasium, and writes metrics.json and report.html under
output_dir.
"""

from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from envs.datasets import open_dataset
from envs.gym_env import GymEnv
from evaluate import check, compare, table
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.report import write_report
from mpdiffuser.training import Clock, origin, start, train_pipeline
from vision import IdentityEncoder


def dataset(cfg: DictConfig) -> Episodes:
    """The task's episodes; their info is what evaluation needs to know."""
    if "suite" not in cfg.task:
        raise InputError(f"task={cfg.task.name}: a task from pixels, for train_vision.py; give d4rl/... or dsrl/...")
    episodes = open_dataset(f"{cfg.task.suite}/{cfg.task.name}", cfg.data_dir)
    if "environment" not in episodes.info:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: there is no environment here to evaluate it in")
    return episodes


def train(cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock) -> None:
    """Train what cfg.evaluation.methods need; the pipeline is in cfg.output_dir then."""
    encoder = IdentityEncoder(episodes["observations"].shape[1], episodes["actions"].shape[1])
    state = {"shape": list(episodes["observations"].shape[1:]), "dtype": "float32"}
    info = episodes.info | {"data": episodes.checksum(), "observation": state, **origin(cfg)}
    info["decision_seconds"] = GymEnv(**info["environment"]).decision_seconds
    limits = info["cost_limits"]
    train_pipeline(cfg, episodes, encoder, None, accelerator, clock, info, cfg.evaluation.methods, limits)


@configured("state")
def main(cfg: DictConfig) -> None:
    check(cfg)
    episodes = dataset(cfg)
    accelerator, clock, output = start(cfg), Clock(), Path(cfg.output_dir)
    train(cfg, episodes, accelerator, clock)
    if accelerator.is_main_process:
        OmegaConf.save(cfg, output / "config.yaml")
        with clock("evaluate"):
            metrics = compare(cfg, output / "pipeline", output, clock.seconds)
        print(table(metrics))
        print(f"Report: {write_report(output)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
