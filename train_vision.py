"""Train from pixels and evaluate: accelerate launch train_vision.py

The script collects episodes with pixels, or takes your own data: dataset=FILE, dataset=FOLDER. It trains the encoder
and the models of the method. The default is method=mpdiffuser; other values are the baselines in docs/methods.md, and
all. It then evaluates the method from pixels and writes metrics.json, video.mp4 and report.html into output_dir.
Without an environment it measures errors on held-out episodes (held_out.json).
"""

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from omegaconf import DictConfig

from envs.collect import check_collection, collect, option_names
from envs.datasets import import_datasets
from envs.record import dm_control_record
from evaluation.check import check_evaluation, check_real_time, check_simulator, observed, with_environment
from evaluation.command import evaluate_run
from evaluation.compare import prepare
from evaluation.held_out import write_held_out
from mpdiffuser.config import configured, settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, check_samplers, check_training, origin, start, start_trackers
from mpdiffuser.preparation import dynamics_episodes, dynamics_info, imitates, unit_actions, with_cost_limits
from mpdiffuser.record import PICTURE, PROPRIOCEPTION
from mpdiffuser.training import check_folder, identities, train_pipeline, trained_methods
from vision.data import inputs
from vision.training import (
    build_representation,
    check_encoder,
    encode_episodes,
    encoder_identities,
    exact_latents,
    latents_identity,
    train_encoder,
)

SEEN = (PICTURE, PROPRIOCEPTION)  # kinds of observations that the pipeline gets
# entries of the dataset's info that are copied to the pipeline's info
KEPT = {"task", "environment", "MUJOCO_GL", "back_end", "quality", "decision_seconds", "suite", "stand_in"}
KEPT |= {"cost_limits", "episode_steps"}
COLLECTED = {"decision_seconds": 0.0}  # info of data that are collected: their seconds are known then


def train(
    cfg: DictConfig, episodes: Episodes, accelerator: Accelerator, clock: Clock, more: Episodes | None = None
) -> None:
    """Train the encoder and the models of cfg.evaluation.methods, and save the pipeline in cfg.output_dir.

    Args:
        episodes: the planner's data.
        accelerator, clock: of the run.
        more: further data of the dynamics model; None: there are none.
    """
    methods = trained_methods(cfg, episodes)
    info = {key: value for key, value in episodes.info.items() if key in KEPT} | origin(cfg)
    episodes, bounds = unit_actions(episodes, cfg.out_of_bounds)
    more = more and dynamics_episodes(cfg, more, episodes, bounds, SEEN)
    info["data"] = episodes.checksum()
    info["record"] = episodes.record.only(*SEEN).with_actions(bounds).to_json()
    check_samplers(cfg, cfg.horizon, bounds, cfg.stride)
    representation = build_representation(cfg, episodes)
    encoder_stages = encoder_identities(cfg, info["data"], representation)
    latents = latents_identity(cfg, representation, encoder_stages, episodes, *([more] if more else []))
    info |= {"dynamics_data": dynamics_info(cfg, more)} if more else {}
    limits = info.get("cost_limits", ())
    stages = identities(cfg, latents, methods, limits, imitates(cfg, episodes), info.get("dynamics_data"))
    check_folder(Path(cfg.output_dir), encoder_stages | stages)
    start_trackers(accelerator, cfg)
    encoder, decoder, encoded = train_encoder(cfg, episodes, representation, encoder_stages, accelerator, clock)
    exact = exact_latents(representation, episodes, encoded)
    more = more and exact_latents(representation, more, encode_episodes(cfg, encoder, more, accelerator, clock))
    pipeline = train_pipeline(cfg, exact, encoder, decoder, accelerator, clock, info, methods, latents, more)
    if accelerator.is_main_process:
        write_held_out(cfg, pipeline, encoded, clock, episodes[inputs(episodes)[0][0]])


@configured("vision")
def main(cfg: DictConfig) -> None:
    """Train and evaluate on a task from pixels."""
    if "suite" in cfg.task:
        name = f"{cfg.task.suite}/{cfg.task.name}"
        if cfg.task.name.startswith("visual-"):
            raise InputError(f"task={name}: give dataset={name}, since its pictures are imported")
        raise InputError(f"task={name}: a task from states, for train_state.py")
    check_evaluation(cfg)
    check_training(cfg)
    if cfg.cost_limits is not None and not cfg.dataset:
        raise InputError("cost_limits: collected data have no costs; leave the option out")
    if cfg.goal_entries is not None:
        raise InputError("goal_entries: is for goals from states (train_state.py); leave it out")
    output, clock = Path(cfg.output_dir), Clock()
    environment = dm_control_record(cfg.task, cfg.rendering, cfg.episode_seconds)
    episodes = None
    if cfg.dataset:
        episodes = import_datasets(cfg.dataset, cfg.data_root, cfg.data_dir, settings(cfg["keys"]))
        if cfg.environment == "task":  # from here on the environment of the data
            episodes = replace(episodes, info=episodes.info | {"environment": environment})
            cfg.environment = None
        episodes = with_cost_limits(cfg, with_environment(episodes, cfg.environment, *SEEN))
    chosen = (environment, cfg.quality, cfg.episodes, cfg.collect_seed, cfg.data_root)
    if episodes is None:
        with option_names(seed="collect_seed"):
            check_collection(*chosen, given=cfg.environment)
    check_real_time(cfg, COLLECTED if episodes is None else episodes.info)
    simulated = environment if episodes is None else episodes.info.get("environment")
    prepare(cfg, simulated, output)
    check_encoder(cfg, episodes)
    if simulated is not None and cfg.evaluation.methods:
        check_simulator(cfg, simulated, observed(episodes.record.only(*SEEN)) if episodes else "frames")
    more = None
    if cfg.dynamics_data:
        more = import_datasets(cfg.dynamics_data, cfg.data_root, cfg.data_dir, settings(cfg["keys"]))
    accelerator = start(cfg)
    if episodes is None:
        with clock("collect"), accelerator.main_process_first():
            episodes = Episodes.load(collect(*chosen, processes=cfg.processes))
    train(cfg, episodes, accelerator, clock, more)
    if accelerator.is_main_process:
        evaluate_run(cfg, output, clock, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
