"""From pixels to a controlled robot: accelerate launch train_vision.py

Collects pixel episodes (or opens `dataset=`), trains the encoder, planner, dynamics model and ranker, controls the task
from pixels beside its baselines, and writes metrics.json, video.mp4 and report.html under output_dir.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from envs.collect import collect
from evaluate import check, compare, table
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.report import write_report
from mpdiffuser.training import Clock, origin, start, train_pipeline
from vision.training import train_encoder


def dataset(cfg: DictConfig) -> Path:
    """The folder of episodes to learn from; collected if it is not there yet."""
    if cfg.dataset:
        return Path(cfg.dataset)
    task = {key: cfg.task[key] for key in ("action_repeat", "size", "camera")}
    return collect(
        cfg.task.name,
        cfg.quality,
        cfg.episodes,
        cfg.collect_seed,
        cfg.data_root,
        rendering=cfg.rendering,
        time_limit=cfg.episode_seconds,
        processes=cfg.processes,
        **task,
    )


@configured("vision")
def main(cfg: DictConfig) -> None:
    if "suite" in cfg.task:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: a task from states, for train_state.py")
    check(cfg)
    accelerator, clock, output = start(cfg), Clock(), Path(cfg.output_dir)
    with clock("collect"), accelerator.main_process_first():
        episodes = Episodes.load(dataset(cfg))
    frame = {"shape": list(episodes["frames"].shape[1:]), "dtype": "uint8"} if "frames" in episodes else None
    info = {key: value for key, value in episodes.info.items() if key in KEPT}
    info |= {"data": episodes.checksum(), "observation": frame, **origin(cfg)}
    encoder, decoder, latent_episodes = train_encoder(cfg, episodes, accelerator, clock)
    methods = ["cloning", "ours", *cfg.evaluation.methods]
    train_pipeline(cfg, latent_episodes, encoder, decoder, accelerator, clock, info, methods)
    if accelerator.is_main_process:
        OmegaConf.save(cfg, output / "config.yaml")
        with clock("evaluate"):
            metrics = compare(cfg, output / "pipeline", output, clock.seconds)
        print(table(metrics))
        print(f"Video:  {output / 'video.mp4'}\nReport: {write_report(output)}")
    accelerator.end_training()


KEPT = ("task", "action_repeat", "size", "camera", "rendering", "MUJOCO_GL", "back_end", "quality", "decision_seconds")

if __name__ == "__main__":
    main()
