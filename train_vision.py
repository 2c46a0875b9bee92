"""Train from pixels and evaluate: accelerate launch train_vision.py

The script collects episodes with pixels (or opens `dataset=`) and trains the encoder and the models of the method. The
default is method=mpdiffuser; other values are the baselines in docs/methods.md, and all. It then evaluates the method
from pixels and writes metrics.json, video.mp4 and report.html into output_dir.
"""

from pathlib import Path

from omegaconf import DictConfig

from envs.collect import check_collection, collect, option_names
from envs.record import dm_control_record
from evaluation.check import check_evaluation, check_simulator
from evaluation.command import evaluate_run
from evaluation.compare import prepare
from mpdiffuser.config import configured
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_samplers, check_training, origin, start, start_trackers
from mpdiffuser.training import check_folder, identities, train_pipeline
from vision.training import build_representation, check_encoder, encoder_identities, train_encoder

# entries of the dataset's info that are copied to the pipeline's info
KEPT = ("task", "environment", "MUJOCO_GL", "back_end", "quality", "decision_seconds")


@configured("vision")
def main(cfg: DictConfig) -> None:
    """Train and evaluate on a task from pixels."""
    if "suite" in cfg.task:
        raise InputError(f"task={cfg.task.suite}/{cfg.task.name}: a task from states, for train_state.py")
    check_evaluation(cfg)
    check_training(cfg)
    output, clock = Path(cfg.output_dir), Clock()
    episodes = Episodes.load(cfg.dataset) if cfg.dataset else None
    environment = dm_control_record(cfg.task, cfg.rendering, cfg.episode_seconds)
    chosen = (environment, cfg.quality, cfg.episodes, cfg.collect_seed, cfg.data_root)
    if episodes is None:
        with option_names(seed="collect_seed"):
            check_collection(*chosen)
    simulated = environment if episodes is None else episodes.info.get("environment")
    prepare(cfg, simulated, output)
    check_encoder(cfg, episodes)
    if simulated is not None:
        check_simulator(cfg, simulated)
    accelerator = start(cfg)
    if episodes is None:
        with clock("collect"), accelerator.main_process_first():
            episodes = Episodes.load(collect(*chosen, processes=cfg.processes))
    check_samplers(cfg, cfg.horizon, episodes["actions"].shape[1])
    info = {key: value for key, value in episodes.info.items() if key in KEPT} | origin(cfg)
    info["data"] = episodes.checksum()
    representation = build_representation(cfg, episodes)
    methods = cfg.evaluation.methods
    encoder_stages = encoder_identities(cfg, info["data"], representation)
    latents_identity = encoder_stages["representation"]
    check_folder(output, encoder_stages | identities(cfg, latents_identity, methods))
    start_trackers(accelerator, cfg)
    encoder, decoder, latents = train_encoder(cfg, episodes, representation, encoder_stages, accelerator, clock)
    info["observation"] = {"shape": list(episodes["frames"].shape[1:]), "dtype": "uint8"}
    train_pipeline(cfg, latents, encoder, decoder, accelerator, clock, info, methods, latents_identity)
    if accelerator.is_main_process:
        evaluate_run(cfg, output, clock)
    accelerator.end_training()


if __name__ == "__main__":
    main()
