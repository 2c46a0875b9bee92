"""From latent episodes to a pipeline: the planner, the dynamics model, the ranker and the cloning baseline."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.models.modeling_utils import ModelMixin
from omegaconf import DictConfig, OmegaConf

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.cloning import BehaviourCloning
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.models.unet import check_horizon
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Steps, Windows, conditions, split, step_rows, to_go


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 1)


def start(cfg: DictConfig) -> Accelerator:
    """Threads, seeds, precision and trackers, as the configuration says; checks every section before anything runs.

    Raises:
        InputError: for a value that cannot be.
    """
    _check(cfg)
    torch.set_num_threads(cfg.threads)
    set_seed(cfg.seed)
    precision = cfg.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if precision not in ("no", "fp16", "bf16"):
        raise InputError(f"mixed_precision: must be auto, no, fp16 or bf16, found {cfg.mixed_precision!r}")
    trackers = list(cfg.trackers)
    unknown = set(trackers) - {"tensorboard", "wandb"}
    if unknown:
        raise InputError(f"trackers: must be of tensorboard, wandb; found {sorted(unknown)}")
    output = Path(cfg.output_dir)
    if Path(os.path.abspath(output)).is_file():
        raise InputError(f"output_dir: {output} is a file")
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not torch.accelerator.is_available(),  # or several processes on a CPU would not know of each other
        log_with=trackers or None,
        project_dir=output / "tensorboard",
    )
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
    if trackers:
        accelerator.init_trackers("mpdiffuser", {"configuration": OmegaConf.to_yaml(cfg)})
    return accelerator


def _check(cfg: DictConfig) -> None:
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if launched_on_cpu and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --cpu starts one process, whatever --num_processes says; for several on CPUs use "
            "accelerate launch --multi_gpu --num_processes 2 (or torchrun --nproc_per_node 2)"
        )
    sampler = sampler_config(cfg.sampler)
    NoiseSchedule().grid(sampler.steps, sampler.grid)
    ranges = {"discount": (0, 0.9999), "validation": (0, 1), "seed": (0, 2**32 - 1), "threads": (1, 1024)}
    for name, (least, most) in ranges.items():
        if not least <= cfg[name] <= most:
            raise InputError(f"{name}: must lie in {least}..{most}, found {cfg[name]}")
    for part in cfg.train:
        train_config(cfg, part)
    for model in ("planner", "dynamics"):
        check_horizon(cfg.horizon, cfg[model].multipliers)
    if not 1 <= cfg.sampler.chunk < cfg.horizon:
        raise InputError(
            f"sampler.chunk: must lie in 1..{cfg.horizon - 1} (below the horizon), found {cfg.sampler.chunk}"
        )


def settings(section: DictConfig) -> dict[str, Any]:
    """A section as plain Python."""
    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def train_config(cfg: DictConfig, name: str) -> TrainConfig:
    """The training settings of one part; the run's seed unless it has its own.

    Raises:
        InputError: for a value that cannot be.
    """
    try:
        return TrainConfig(**{"seed": cfg.seed, **settings(cfg.train[name])})
    except InputError as error:
        raise InputError(str(error).replace("train.", f"train.{name}.", 1)) from error


def sampler_config(section: DictConfig) -> SamplerConfig:
    """The sampler's settings; `chunk` belongs to the controller."""
    return SamplerConfig(**{key: value for key, value in settings(section).items() if key != "chunk"})


def train_pipeline(
    cfg: DictConfig,
    episodes: Episodes,
    encoder: ModelMixin,
    decoder: ModelMixin | None,
    accelerator: Accelerator,
    clock: Clock,
    info: dict[str, Any],
) -> tuple[MPDiffuserPipeline, BehaviourCloning]:
    """Train everything that works on latents, under cfg.output_dir; save the pipeline and the baseline there.

    Args:
        episodes: with `observations` = latents.
        info: kept in the pipeline.
    """
    output = Path(cfg.output_dir)
    train, held_out = split(episodes, cfg.validation, cfg.seed)
    rows = step_rows(train)
    latents = Normalizer(train["observations"].shape[1]).fit(train["observations"])
    actions = Normalizer(train["actions"].shape[1]).fit(train["actions"][rows])
    wanted = conditions(train, cfg.discount)[rows]
    condition = Marginals(wanted.shape[1]).fit(wanted)
    schedule = NoiseSchedule()
    dims = {"latent_dim": latents.config["dim"], "action_dim": actions.config["dim"]}

    def fit(name: str, model: Any, data: Any, validation: Any) -> Any:
        config = train_config(cfg, name)
        identity = {"data": info["data"], "horizon": cfg.horizon, "discount": cfg.discount}
        with clock(name):
            return Trainer(
                name, model, data, validation, config, output / name, accelerator, schedule, identity
            ).train()

    windows = [Windows(part, cfg.horizon, cfg.discount, latents, actions, condition) for part in (train, held_out)]
    steps = [Steps(part, cfg.discount) for part in (train, held_out)]
    torch.manual_seed(cfg.seed)
    planner = Planner(**dims, horizon=cfg.horizon, condition_dim=condition.config["dim"], **settings(cfg.planner))
    planner = fit("planner", planner, *windows)
    dynamics = fit("dynamics", Dynamics(**dims, horizon=cfg.horizon, **settings(cfg.dynamics)), *windows)
    ranker = Ranker(**dims, discount=cfg.discount, costs="costs" in train, **settings(cfg.ranker))
    ranker.latents.fit(train["observations"])
    ranker.rewards.fit(train["rewards"][rows])
    ranker.returns.fit(to_go(train["rewards"], train, cfg.discount)[rows])
    ranker = fit("ranker", ranker, *steps)
    cloning = BehaviourCloning(**dims)
    cloning.latents.fit(train["observations"])
    cloning = fit("cloning", cloning, *steps)
    pipeline = MPDiffuserPipeline(
        encoder, latents, actions, condition, planner, dynamics, ranker, schedule, decoder, info
    )
    if accelerator.is_main_process:
        pipeline.save_pretrained(output / "pipeline")
        cloning.save_pretrained(output / "pipeline" / "cloning")
    accelerator.wait_for_everyone()
    return pipeline.to(accelerator.device), cloning
