"""From logged states to a controlled robot: accelerate launch train_state.py task=d4rl/hopper-medium-v2

Reads the task's public file (data_dir= says where it lies), trains the planner, dynamics model and ranker, controls the
task in gymnasium beside the baselines, and writes metrics.json and report.html under output_dir.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from envs.readers.flat_hdf5 import read_flat_hdf5
from envs.tasks import find_file, find_offline_task
from evaluate import check, compare, table
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.report import write_report
from mpdiffuser.training import Clock, origin, start, train_pipeline
from vision import IdentityEncoder


def dataset(cfg: DictConfig) -> Episodes:
    """The task's episodes; their info is what evaluation needs to know."""
    task = find_offline_task(cfg.task.name, cfg.task.suite)
    if task.env_id is None:
        raise InputError(f"task={task.suite}/{task.name}: there is no environment here to evaluate it in")
    file, stand_in = find_file(task, cfg.data_dir)
    if stand_in:
        print(f"note: {file} is not the public file {task.file}: a stand-in; its results are no {task.suite} results")
    environment = {"env_id": task.env_id, "speed_limit": task.speed_limit}
    info = {"suite": task.suite, "task": task.name, "stand_in": stand_in, "environment": environment}
    return read_flat_hdf5(file, task.episode_steps, info)


@configured("state")
def main(cfg: DictConfig) -> None:
    check(cfg)
    episodes = dataset(cfg)
    accelerator, clock, output = start(cfg), Clock(), Path(cfg.output_dir)
    encoder = IdentityEncoder(episodes["observations"].shape[1], episodes["actions"].shape[1])
    state = {"shape": list(episodes["observations"].shape[1:]), "dtype": "float32"}
    info = episodes.info | {"data": episodes.checksum(), "observation": state, **origin(cfg)}
    train_pipeline(cfg, episodes, encoder, None, accelerator, clock, info)
    if accelerator.is_main_process:
        OmegaConf.save(cfg, output / "config.yaml")
        with clock("evaluate"):
            metrics = compare(cfg, output / "pipeline", output, clock.seconds)
        print(table(metrics))
        print(f"Report: {write_report(output)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
