"""Train from logged states and evaluate: accelerate launch train_state.py task=d4rl/hopper-medium-v2

The script reads the task's public file (data_dir= sets its folder), or your own data: dataset=FILE, dataset=FOLDER. It
trains the models of the method. The default is method=mpdiffuser; other values are the baselines in docs/methods.md,
and all. It then evaluates the method in gymnasium and writes metrics.json and report.html into output_dir. Without an
environment it measures errors on held-out episodes (held_out.json).
"""

from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig

from envs.datasets import open_datasets, open_task
from evaluation.check import check_evaluation, check_real_time, with_environment
from evaluation.command import evaluate_run
from evaluation.compare import prepare
from evaluation.held_out import write_held_out
from mpdiffuser.config import configured, settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_samplers, check_training, origin, start, start_trackers
from mpdiffuser.preparation import (
    dynamics_episodes,
    dynamics_info,
    goal_entries,
    imitates,
    unit_actions,
    with_cost_limits,
)
from mpdiffuser.training import check_folder, identities, train_pipeline, trained_methods
from vision.states import STATES, encode_states, state_encoder


def dataset(cfg: DictConfig) -> Episodes:
    """Open the dataset, or the task's episodes.

    Raises:
        InputError: for a task from pixels, or if the data cannot be opened.
    """
    if cfg.dataset:
        return open_datasets(cfg.dataset, cfg.data_dir, settings(cfg["keys"]), pictures=False)
    if "suite" not in cfg.task:
        raise InputError(
            f"task={cfg.task.name}: a task from pixels, for train_vision.py; give d4rl/..., dsrl/... or ogbench/..."
        )
    return open_task(cfg.task.name, cfg.task.suite, cfg.data_dir)


def train(
    cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock, more: Episodes | None = None
) -> None:
    """Train the models of cfg.evaluation.methods, and save the pipeline in cfg.output_dir.

    Args:
        episodes: the planner's data.
        accelerator, clock: of the run.
        more: further data of the dynamics model; None: there are none.
    """
    methods = trained_methods(cfg, episodes)
    encoder = state_encoder(episodes, cfg.history)
    episodes, bounds = unit_actions(episodes, cfg.out_of_bounds)
    more = more and dynamics_episodes(cfg, more, episodes, bounds, STATES)
    check_samplers(cfg, cfg.horizon, bounds, cfg.stride)
    cfg.goal_entries = goal_entries(cfg, episodes, STATES)
    info = episodes.info | {"data": episodes.checksum(), **origin(cfg)}
    info["record"] = episodes.record.only(*STATES).with_actions(bounds).to_json()
    info |= {"dynamics_data": dynamics_info(cfg, more)} if more else {}
    whole = ({"data": info["data"]}, methods, info.get("cost_limits", ()), imitates(cfg, episodes))
    stages = identities(cfg, *whole, info.get("dynamics_data"))
    check_folder(Path(cfg.output_dir), stages)
    start_trackers(accelerator, cfg)
    encoded = encode_states(encoder, episodes)
    more = more and encode_states(encoder, more)
    pipeline = train_pipeline(cfg, encoded, encoder, None, accelerator, clock, info, methods, more=more)
    if accelerator.is_main_process:
        write_held_out(cfg, pipeline, encoded, clock)


@configured("state")
def main(cfg: DictConfig) -> None:
    """Train and evaluate on a task from states."""
    check_evaluation(cfg)
    check_training(cfg)
    episodes = with_cost_limits(cfg, with_environment(dataset(cfg), cfg.environment, *STATES))
    output = Path(cfg.output_dir)
    prepare(cfg, episodes.info.get("environment"), output)
    check_real_time(cfg, episodes.info)
    more = None
    if cfg.dynamics_data:
        more = open_datasets(cfg.dynamics_data, cfg.data_dir, settings(cfg["keys"]), pictures=False)
    accelerator, clock = start(cfg), Clock()
    train(cfg, episodes, accelerator, clock, more)
    if accelerator.is_main_process:
        evaluate_run(cfg, output, clock, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
