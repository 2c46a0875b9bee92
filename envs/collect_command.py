"""The command `python collect.py` or `mpdiffuser collect`."""

from omegaconf import DictConfig

from envs.collect import collect, option_names
from envs.record import dm_control_record
from mpdiffuser.config import configured
from mpdiffuser.errors import InputError


@configured("collect")
def main(cfg: DictConfig) -> None:
    """Collect a dataset, or reuse it, and print its folder."""
    if "suite" in cfg.task:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: has a public file; there is nothing to collect")
    environment = dm_control_record(cfg.task, cfg.rendering, cfg.episode_seconds)
    with option_names():
        print(collect(environment, cfg.quality, cfg.episodes, cfg.seed, cfg.data_root, cfg.processes))
