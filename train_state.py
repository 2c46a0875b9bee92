"""Train from logged states and evaluate: accelerate launch train_state.py task=d4rl/hopper-medium-v2

The script reads the task's public file (data_dir= sets its folder) and trains the models of the method. The default is
method=mpdiffuser; other values are the baselines in docs/methods.md, and all. It then evaluates the method in gymnasium
and writes metrics.json and report.html into output_dir. A task without an environment in this program is not evaluated.
"""

from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig

import envs
from envs.datasets import open_task
from evaluation.check import check_evaluation
from evaluation.command import evaluate_run
from evaluation.compare import prepare
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_samplers, check_training, origin, start, start_trackers
from mpdiffuser.training import check_folder, identities, train_pipeline
from vision import IdentityEncoder


def dataset(cfg: DictConfig) -> Episodes:
    """Open the task's episodes.

    Raises:
        InputError: for a task from pixels, or if the data cannot be opened.
    """
    if "suite" not in cfg.task:
        raise InputError(f"task={cfg.task.name}: a task from pixels, for train_vision.py; give d4rl/... or dsrl/...")
    return open_task(cfg.task.name, cfg.task.suite, cfg.data_dir)


def train(cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock) -> None:
    """Train the models of cfg.evaluation.methods, and save the pipeline in cfg.output_dir."""
    state_dim, action_dim = (episodes[key].shape[1] for key in ("observations", "actions"))
    info = episodes.info | {"data": episodes.checksum(), **origin(cfg)}
    info["observation"] = {"shape": [state_dim], "dtype": "float32"}
    if "environment" in info:
        info["decision_seconds"] = envs.make(info["environment"]).decision_seconds
    check_samplers(cfg, cfg.horizon, action_dim)
    methods = cfg.evaluation.methods
    check_folder(Path(cfg.output_dir), identities(cfg, {"data": info["data"]}, methods, info.get("cost_limits", ())))
    start_trackers(accelerator, cfg)
    train_pipeline(cfg, episodes, IdentityEncoder(state_dim, action_dim), None, accelerator, clock, info, methods)


@configured("state")
def main(cfg: DictConfig) -> None:
    """Train and evaluate on a task from states."""
    check_evaluation(cfg)
    check_training(cfg)
    episodes, output = dataset(cfg), Path(cfg.output_dir)
    prepare(cfg, episodes.info.get("environment"), output)
    accelerator, clock = start(cfg), Clock()
    train(cfg, episodes, accelerator, clock)
    if accelerator.is_main_process:
        evaluate_run(cfg, output, clock)
    accelerator.end_training()


if __name__ == "__main__":
    main()
