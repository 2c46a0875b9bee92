"""Collect a dataset: python collect.py task=reacher_easy quality=expert episodes=50 (options: configs/collect.yaml)."""

from omegaconf import DictConfig

from envs.collect import collect
from envs.record import dm_control_record
from mpdiffuser.config import configured
from mpdiffuser.errors import InputError


@configured("collect")
def main(cfg: DictConfig) -> None:
    if "suite" in cfg.task:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: has a public file; there is nothing to collect")
    environment = dm_control_record(cfg.task, cfg.rendering, cfg.episode_seconds)
    path = collect(environment, cfg.quality, cfg.episodes, cfg.seed, cfg.data_root, cfg.processes)
    print(path)


if __name__ == "__main__":
    main()
