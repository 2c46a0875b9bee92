"""From logged states to a controlled robot: accelerate launch train_state.py task=d4rl/hopper-medium-v2

Reads the task's public file (data_dir= says where it lies), trains the models of the method (method=mpdiffuser by
default, or a baseline of docs/methods.md, or all), controls the task in gymnasium, and writes metrics.json and
report.html under output_dir. A task without an environment here is trained and not evaluated.
"""

from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig

import envs
from envs.datasets import open_dataset
from evaluation.command import evaluate_run
from evaluation.compare import prepare
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, origin, start, start_trackers
from mpdiffuser.training import check_folder, identities, train_pipeline
from vision import IdentityEncoder


def dataset(cfg: DictConfig) -> Episodes:
    """The task's episodes; their info is what evaluation needs to know."""
    if "suite" not in cfg.task:
        raise InputError(f"task={cfg.task.name}: a task from pixels, for train_vision.py; give d4rl/... or dsrl/...")
    return open_dataset(f"{cfg.task.suite}/{cfg.task.name}", cfg.data_dir)


def train(cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock) -> None:
    """Train the models of cfg.evaluation.methods; the pipeline is then in cfg.output_dir."""
    state_dim, action_dim = (episodes[key].shape[1] for key in ("observations", "actions"))
    info = episodes.info | {"data": episodes.checksum(), **origin(cfg)}
    info["observation"] = {"shape": [state_dim], "dtype": "float32"}
    if "environment" in info:
        info["decision_seconds"] = envs.make(info["environment"]).decision_seconds
    methods = cfg.evaluation.methods
    check_folder(Path(cfg.output_dir), identities(cfg, {"data": info["data"]}, methods, info["cost_limits"]))
    start_trackers(accelerator, cfg)
    train_pipeline(cfg, episodes, IdentityEncoder(state_dim, action_dim), None, accelerator, clock, info, methods)


@configured("state")
def main(cfg: DictConfig) -> None:
    episodes, output = dataset(cfg), Path(cfg.output_dir)
    prepare(cfg, episodes.info.get("environment"), output)
    accelerator, clock = start(cfg), Clock()
    train(cfg, episodes, accelerator, clock)
    if accelerator.is_main_process:
        evaluate_run(cfg, output, clock)
    accelerator.end_training()


if __name__ == "__main__":
    main()
