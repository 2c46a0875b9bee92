"""From logged states to a controlled robot: accelerate launch train_state.py task=d4rl/hopper-medium-v2

Reads the task's public file (data_dir= says where it lies), trains what the method needs (method=ours by default, or a
rival of docs/methods.md, or all), controls the task in gymnasium, and writes metrics.json and report.html under
output_dir.
"""

import hashlib
from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from envs.readers.flat_hdf5 import read_flat_hdf5
from envs.tasks import find_file, find_offline_task
from evaluate import check, compare, table
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.report import write_report
from mpdiffuser.training import Clock, start, train_pipeline
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


def fingerprint(episodes: Episodes) -> str:
    """A name for what episodes hold."""
    digest = hashlib.sha256(episodes.offsets.tobytes())
    for key in sorted(episodes.arrays):
        digest.update(key.encode() + memoryview(episodes[key]).cast("B"))
    return digest.hexdigest()[:16]


def train(cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock) -> None:
    """Train what cfg.evaluation.methods need; the pipeline is in cfg.output_dir then."""
    encoder = IdentityEncoder(episodes["observations"].shape[1], episodes["actions"].shape[1])
    info = episodes.info | {"data": fingerprint(episodes)}
    train_pipeline(cfg, episodes, encoder, None, accelerator, clock, info, cfg.evaluation.methods)


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
