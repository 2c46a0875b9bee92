"""Start-up of a training run: checks, processes, threads, seeds and trackers."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from omegaconf import DictConfig

from mpdiffuser import __version__
from mpdiffuser.config import flat, settings
from mpdiffuser.errors import InputError
from mpdiffuser.files import claim
from mpdiffuser.machine import git_commit
from mpdiffuser.methods import METHODS
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.record import Actions
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig

RANGES = {
    "discount": (0, 0.9999),
    "td_lambda": (0, 1),
    "rounds": (1, 100),
    "validation": (0, 1),
    "occupancy": (0, 1),
    "seed": (0, 2**32 - 1),
    "stride": (1, 1000),
    "threads": (1, 1024),
    "processes": (1, 1024),
}
TRACKERS = {"tensorboard": "tensorboard", "wandb": "mpdiffuser[wandb]"}  # name -> what pip installs
# ways of training of accelerate that the trainer does not have; accelerate launch sets these variables
UNKNOWN_TO_TRAINER = ("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG")


class Clock:
    """Measures the seconds of each stage, as `with clock("stage"):`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `seconds[stage]`."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 1)


def start(cfg: DictConfig) -> Accelerator:
    """Check the configuration, set up threads, seeds, precision and processes, and lock the run's folder.

    Raises:
        InputError: for a value that is not allowed, or a folder that another process has locked.
    """
    check_training(cfg)
    torch.set_num_threads(cfg.threads)
    set_seed(cfg.seed)
    precision = cfg.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    output = Path(cfg.output_dir)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=not torch.accelerator.is_available(),  # several processes on a CPU need it to communicate
            log_with=list(cfg.trackers) or None,
            project_dir=output / "tensorboard",
            # in place of values that accelerate finds in the environment
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
        )
    except (ValueError, RuntimeError) as error:
        found = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("ACCELERATE_")]
        raise InputError(
            f"accelerate cannot start ({error}); it was given mixed_precision={precision} and, in the environment, "
            f"{', '.join(found) or 'nothing'}"
        ) from error
    for part in cfg.train:
        if train_config(cfg, part).batch_size % accelerator.num_processes:
            raise InputError(
                f"train.{part}.batch_size: {cfg.train[part].batch_size} cannot be split among "
                f"{accelerator.num_processes} processes"
            )
    if accelerator.is_main_process:
        claim(output, "wait for it, or choose another output_dir=")
    return accelerator


def start_trackers(accelerator: Accelerator, cfg: DictConfig) -> None:
    """Open the logs of the trackers. Call this after `check_folder`, since it writes into the run's folder.

    Each tracker gets the configuration as a dict with one entry for each option, such as "task.name".

    Raises:
        InputError: if a tracker cannot start.
    """
    if not cfg.trackers:
        return
    options = {
        key: value if isinstance(value, bool | int | float | str) else str(value)  # tensorboard takes only these types
        for key, value in flat(cfg).items()
    }
    try:
        accelerator.init_trackers("mpdiffuser", options)
    except Exception as error:  # each tracker has its own
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(
            f"trackers: {', '.join(cfg.trackers)} cannot start ({reason}); set trackers=[tensorboard] or trackers=[]"
        ) from error


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that is unknown, not installed, or without the key that it needs."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"trackers: must be of {', '.join(TRACKERS)}; found {[*names]}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"trackers: {name} is not installed: pip install '{TRACKERS[name]}'; or leave it out")
    if "wandb" in names and os.environ.get("RANK", "0") == "0":
        _log_in_to_wandb()


def _log_in_to_wandb() -> None:
    """Log in, unless wandb writes to files only. On a terminal without a key, wandb asks for one."""
    try:
        import wandb

        ready = wandb.setup().settings.mode in ("offline", "dryrun", "disabled") or wandb.login()
        reason = "" if ready else "no key on this machine"
    except Exception as error:  # its versions have different ones
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    if reason:
        raise InputError(
            f"trackers: wandb cannot log in ({reason}): run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
        )


def check_environment() -> None:
    """Raise InputError for a variable of accelerate that asks for a way of training that the trainer does not have."""
    for name in UNKNOWN_TO_TRAINER:
        variable = f"ACCELERATE_{name}"
        if os.environ.get(variable, "false").lower() not in ("false", "0", "no", "off", ""):
            raise InputError(
                f"{variable}={os.environ[variable]}: this program trains on one or several processes without it; unset "
                "it, or choose none of these in `accelerate config`"
            )


def check_training(cfg: DictConfig) -> None:
    """Raise InputError for a value of the configuration that training does not allow."""
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if launched_on_cpu and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --cpu always starts one process; for several on CPUs use "
            "accelerate launch --multi_gpu --num_processes 2 (or torchrun --nproc_per_node 2)"
        )
    if cfg.mixed_precision not in ("auto", "no", "fp16", "bf16"):
        raise InputError(f"mixed_precision: must be auto, no, fp16 or bf16, found {cfg.mixed_precision!r}")
    if cfg.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise InputError("mixed_precision: fp16 needs a GPU; on a CPU use no or bf16")
    check_environment()
    check_trackers(cfg.trackers)
    if Path(os.path.abspath(cfg.output_dir)).is_file():
        raise InputError(f"output_dir: {cfg.output_dir} is a file")
    check_samplers(cfg, cfg.horizon, stride=cfg.stride)
    for section in ("advantage", "episode_advantage"):
        if not cfg[section].temperature > 0:
            raise InputError(f"{section}.temperature: must be positive, found {cfg[section].temperature}")
    if not 0 <= cfg.advantage.gae_lambda <= 1:
        raise InputError(f"advantage.gae_lambda: must lie in 0..1, found {cfg.advantage.gae_lambda}")
    if cfg.advantage.effective_windows < 0:
        raise InputError(f"advantage.effective_windows: must be 0 or more, found {cfg.advantage.effective_windows}")
    for name, (least, most) in RANGES.items():
        if cfg[name] is not None and not least <= cfg[name] <= most:
            raise InputError(f"{name}: must lie in {least}..{most}, found {cfg[name]}")
    for part in cfg.train:
        train_config(cfg, part)
    with torch.device("meta"):  # the constructors check their arguments
        Planner(1, 1, cfg.horizon, **settings(cfg.planner))
        Dynamics(1, 1, cfg.horizon, **settings(cfg.dynamics))
        Ranker(1, 1, **settings(cfg.ranker))


def check_samplers(
    cfg: DictConfig, horizon: int | None = None, actions: Actions | None = None, stride: int = 1
) -> None:
    """Raises InputError for settings of the sampler, or of a baseline to be evaluated, that are not allowed.

    Args:
        horizon: of the plans; None: not known yet.
        actions: bounds of the actions; None: not known yet.
        stride: decisions between two rows of a plan.
    """
    # in evaluate.py null stands for the setting that is saved with the pipeline
    given = {name: value for name, value in settings(cfg.sampler).items() if value is not None}
    configs = {"sampler": SamplerConfig(**given)}
    for name in cfg.evaluation.methods:
        section = settings(cfg.baselines).get(name, {})
        METHODS[name].check_settings(section)
        config = METHODS[name].sampler_config(section)
        if config is not None:
            configs[f"baselines.{name}"] = config
    for name, config in configs.items():
        try:
            NoiseSchedule().grid(config.levels, config.grid)
            if horizon is not None:
                config.check_fit(horizon, actions, stride)
        except InputError as error:
            raise InputError(str(error).replace("sampler.", f"{name}.", 1)) from error


def origin(cfg: DictConfig) -> dict[str, Any]:
    """Return the entries of a pipeline's info that describe its training: seed, commit, versions."""
    packages = ("torch", "diffusers", "accelerate", "numpy", "safetensors")
    versions = {"mpdiffuser": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    return {"seed": cfg.seed, "commit": git_commit(), "versions": versions}


def train_config(cfg: DictConfig, name: str) -> TrainConfig:
    """Return the settings of the section `train.NAME`. The run's options are its defaults for seed and intervals.

    Raises:
        InputError: for a value that is not allowed.
    """
    try:
        common = {key: cfg[key] for key in ("seed", "checkpoint_every", "skip_bad_steps")}
        return TrainConfig(**common | settings(cfg.train[name]))
    except InputError as error:
        raise InputError(str(error).replace("train.", f"train.{name}.", 1)) from error
