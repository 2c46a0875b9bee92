"""Collect a dataset: python collect.py task=reacher_easy quality=expert episodes=50 (options: configs/collect.yaml)."""

from omegaconf import DictConfig

from envs.collect import collect
from mpdiffuser.config import configured
from mpdiffuser.errors import InputError


@configured("collect")
def main(cfg: DictConfig) -> None:
    if "suite" in cfg.task:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: has a public file; there is nothing to collect")
    path = collect(
        task=cfg.task.name,
        quality=cfg.quality,
        episodes=cfg.episodes,
        seed=cfg.seed,
        data_root=cfg.data_root,
        action_repeat=cfg.task.action_repeat,
        size=cfg.task.size,
        camera=cfg.task.camera,
        rendering=cfg.rendering,
        time_limit=cfg.episode_seconds,
        processes=cfg.processes,
    )
    print(path)


if __name__ == "__main__":
    main()
