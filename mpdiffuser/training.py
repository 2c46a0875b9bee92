"""From latent episodes to a pipeline: the planner, the dynamics model, the ranker, and the models of the rivals."""

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.models.modeling_utils import ModelMixin
from omegaconf import DictConfig, OmegaConf

from mpdiffuser.budget import calibrate
from mpdiffuser.config import settings
from mpdiffuser.distillation import distil, shaping, teaching
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, check_manifest, claim, publish, read_json, writing
from mpdiffuser.machine import git_commit, side_by_side

from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.models.unet import check_horizon
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.rivals import RIVALS, models_of, rival_config
from mpdiffuser.rivals.training import train_rivals
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Steps, Windows, split, step_rows, to_go

ORIGIN = ("commit", "versions")  # of a pipeline's info: who made it


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
        claim(output, "wait for it, or choose another output_dir=")
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
    sections = {"sampler": (cfg.sampler, sampler_config(cfg.sampler))}
    for name in set(RIVALS) & set(cfg.evaluation.methods):
        section = cfg.rivals[name]
        sections[f"rivals.{name}"] = section, rival_config(name, settings(section))
    for name, (section, sampler) in sections.items():
        try:
            NoiseSchedule().grid(sampler.steps, sampler.grid)
        except InputError as error:
            raise InputError(str(error).replace("sampler.", f"{name}.", 1)) from error
        if not 1 <= section.chunk < cfg.horizon:
            raise InputError(
                f"{name}.chunk: must lie in 1..{cfg.horizon - 1} (below the horizon), found {section.chunk}"
            )
    if cfg.advantage.temperature <= 0 or not 0 <= cfg.advantage.trace <= 1:
        raise InputError(
            "advantage: temperature must be positive and trace lie in 0..1, "
            f"found temperature={cfg.advantage.temperature}, trace={cfg.advantage.trace}"
        )
    ranges = {
        "discount": (0, 0.9999),
        "trace": (0, 1),
        "rounds": (1, 100),
        "validation": (0, 1),
        "occupancy": (0, 1),
        "seed": (0, 2**32 - 1),
        "threads": (1, 1024),
    }
    for name, (least, most) in ranges.items():
        if not least <= cfg[name] <= most:
            raise InputError(f"{name}: must lie in {least}..{most}, found {cfg[name]}")
    for part in cfg.train:
        train_config(cfg, part)
    for model in ("planner", "dynamics"):
        check_horizon(cfg.horizon, cfg[model].multipliers)


def origin(cfg: DictConfig) -> dict[str, Any]:
    """How a pipeline came to be, kept in its info: seed, commit, versions."""
    packages = ("torch", "diffusers", "accelerate", "numpy", "safetensors")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    return {"seed": cfg.seed, "commit": git_commit(), "versions": versions}


def train_config(cfg: DictConfig, name: str) -> TrainConfig:
    """The training settings of one part; the run's seed and the like unless it has its own.

    Raises:
        InputError: for a value that cannot be.
    """
    try:
        common = {key: cfg[key] for key in ("seed", "checkpoint_every", "skip_bad_steps")}
        return TrainConfig(**common | settings(cfg.train[name]))
    except InputError as error:
        raise InputError(str(error).replace("train.", f"train.{name}.", 1)) from error


def sampler_config(section: DictConfig, pixels: bool = True, limited: bool = False) -> SamplerConfig:
    """The sampler's settings for a pipeline that sees pixels or states, under a cost limit or without; `chunk` and
    `safe_action` belong to the controller."""
    chosen = {key: value for key, value in settings(section).items() if key not in ("chunk", "safe_action")}
    if chosen["solver"] is None:
        with_noise = chosen["composition"] == "release" or not (pixels or chosen["eta"])
        chosen["solver"] = "ddpm" if with_noise else SamplerConfig.solver
    if chosen["temperature"] is None:
        chosen["temperature"] = 1.0 if limited else SamplerConfig.temperature
    return SamplerConfig(**chosen)


def train_pipeline(
    cfg: DictConfig,
    episodes: Episodes,
    encoder: ModelMixin,
    decoder: ModelMixin | None,
    accelerator: Accelerator,
    clock: Clock,
    info: dict[str, Any],
    methods: Sequence[str] = ("cloning", "planner", "ours"),
    limits: Sequence[float] = (),
) -> MPDiffuserPipeline:
    """Train what the methods need on latents, each model once, under cfg.output_dir; save the pipeline there, and the
    others' models in folders of their names beside its own.

    Args:
        episodes: with `observations` = latents.
        info: kept in the pipeline.
        limits: of an episode's cost; for each a baseline clones the episodes that kept to it.
    """
    output = Path(cfg.output_dir)
    episodes.check_finite()
    train, held_out = split(episodes, cfg.validation, cfg.seed)
    latents = Normalizer(train["observations"].shape[1]).fit(train["observations"])
    actions = Normalizer(train["actions"].shape[1]).fit(train["actions"][step_rows(train)])
    schedule = NoiseSchedule()
    dims = {"latent_dim": latents.config["dim"], "action_dim": actions.config["dim"]}

    def fit(name: str, model: Any, data: Any, validation: Any, **more: Any) -> Any:
        config = train_config(cfg, re.split("/|_within", name)[0])
        kept = ("horizon", "discount", "rounds", "trace", "occupancy")
        identity = {"data": info["data"]} | {key: cfg[key] for key in kept} | more
        with clock(name):
            return Trainer(
                name, model, data, validation, config, output / name, accelerator, schedule, identity
            ).train()

    torch.manual_seed(cfg.seed)
    parts = (train, held_out)
    costs = [to_go(part["costs"], part, cfg.discount) if "costs" in part else None for part in parts]
    wanted = models_of(methods)
    ours: dict[str, Any] = dict.fromkeys(("condition", "planner", "dynamics", "ranker"))
    if "planner" in wanted:
        ours = train_ours(cfg, parts, costs, dims, (latents, actions), wanted, fit, accelerator)
        if "costs" in train:
            info = info | {"cost_margins": calibrate(ours["ranker"], held_out)}
    others: dict[str, ModelMixin] = train_clones(dims, parts, limits, fit) if "cloning" in wanted else {}
    targets = [planner_targets(to_go(part["rewards"], part, cfg.discount), cost) for part, cost in zip(parts, costs)]
    others |= train_rivals(
        cfg, parts, targets, (latents, actions), wanted, fit, accelerator.device, accelerator.num_processes
    )
    drawing = teaching(sampler_config(cfg.sampler, hasattr(encoder, "frame_net")))
    if "student" in wanted:
        info = info | {"distilled": shaping(drawing)}
    pipeline = MPDiffuserPipeline(encoder, latents, actions, **ours, schedule=schedule, decoder=decoder, info=info)
    if "student" in wanted:
        others["student"] = distil(pipeline, drawing, parts, targets, fit, accelerator.device)
    if accelerator.is_main_process:
        save_whole(pipeline, others, output / "pipeline")
    accelerator.wait_for_everyone()
    return pipeline.to(accelerator.device)


def planner_targets(returns: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """What a planner may be asked for, at each row, (M, c): return_to_go (M,), and where there are costs
    cost_to_go (M,)."""
    return np.stack([returns] if costs is None else [returns, costs], -1)


def train_ours(
    cfg: DictConfig,
    parts: Sequence[Episodes],
    costs: Sequence[np.ndarray | None],
    dims: dict[str, int],
    normalizers: tuple[Normalizer, Normalizer],
    wanted: set[str],
    fit: Callable[..., Any],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The ranker, then side by side the planner and, if wanted, the dynamics model; and the planner's condition."""
    ranker = Ranker(**dims, discount=cfg.discount, costs="costs" in parts[0], **settings(cfg.ranker))
    visits = [occupancy(part, cfg.discount, cfg.occupancy) for part in parts]
    returns = train_ranker(ranker, parts, costs, visits, cfg.rounds, cfg.trace, fit)
    targets = [planner_targets(*each) for each in zip(returns, costs)]
    condition = Marginals(targets[0].shape[1]).fit(targets[0][step_rows(parts[0])])
    common = (cfg.horizon, *normalizers, condition)
    windows = [Windows(part, target, *common, visit) for part, target, visit in zip(parts, targets, visits)]
    advantage = settings(cfg.advantage)
    weights = planner_weights(ranker, parts, costs, **advantage)
    often = [weight * visit for weight, visit in zip(weights, visits)]
    good = [Windows(part, target, *common, each) for part, target, each in zip(parts, targets, often)]
    planner = Planner(**dims, horizon=cfg.horizon, condition_dim=condition.config["dim"], **settings(cfg.planner))
    dynamics = Dynamics(**dims, horizon=cfg.horizon, **settings(cfg.dynamics)) if "dynamics" in wanted else None
    jobs = [lambda: fit("planner", planner, *good, advantage=advantage)]
    if dynamics is not None:
        jobs.append(lambda: fit("dynamics", dynamics, *windows))
    side_by_side(jobs, accelerator.device, accelerator.num_processes)
    return {"condition": condition, "planner": planner, "dynamics": dynamics, "ranker": ranker}


def train_clones(
    dims: dict[str, int], parts: Sequence[Episodes], limits: Sequence[float], fit: Callable[..., Any]
) -> dict[str, Any]:
    """Behaviour cloning on all episodes, and for each cost limit on those within it, by name."""
    clones = {}
    chosen = {"cloning": parts} | {f"cloning_within_{limit:g}": within(parts, limit) for limit in limits}
    for name, some in chosen.items():
        clones[name] = BehaviourCloning(**dims)
        clones[name].latents.fit(parts[0]["observations"])
        unasked = [np.zeros(len(part["rewards"]), np.float32) for part in some]
        fit(name, clones[name], *(Steps(*each) for each in zip(some, unasked)))
    return clones


def within(parts: Sequence[Episodes], limit: float) -> list[Episodes]:
    """Of each part the episodes that cost at most `limit`, or where there are none, the cheapest."""
    totals = [np.add.reduceat(np.asarray(part["costs"], np.float64), part.offsets[:-1]) for part in parts]
    return [part.select(np.flatnonzero(cost <= max(limit, cost.min()))) for part, cost in zip(parts, totals)]


def save_whole(pipeline: MPDiffuserPipeline, others: dict[str, Any], folder: Path) -> None:
    """Save a pipeline and the models beside its own; the folder appears whole or not at all, and one that holds the
    same already stays as it is."""
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        for name, model in others.items():
            model.save_pretrained(partial / name)
        pipeline.save_pretrained(partial)
        if _made(partial) == _made(folder):
            shutil.rmtree(partial)
        else:
            publish(partial, folder)


def _made(folder: Path) -> dict[str, Any] | None:
    """What a whole pipeline folder holds, who made it aside: checksums and the index; None for any other folder."""
    try:
        check_manifest(folder, "")
    except InputError:
        return None
    files, index = read_json(folder / MANIFEST)["files"], read_json(folder / "model_index.json")
    del files["model_index.json"], index["_diffusers_version"]
    return files | {"index": index | {"info": {k: v for k, v in index["info"].items() if k not in ORIGIN}}}


def train_ranker(
    ranker: Ranker,
    parts: Sequence[Episodes],
    costs: Sequence[np.ndarray | None],
    visits: Sequence[np.ndarray],
    rounds: int,
    trace: float,
    fit: Callable[..., Any],
) -> list[np.ndarray]:
    """Fitted value iteration: each round learns the returns (see `to_go`) that the values of the round before complete.

    The data hold good beginnings that end badly, and the other way round. A ranker of the returns as logged would hold
    the end against the beginning; with each round its values come nearer to what the best of the data, put together,
    would bring.

    Args:
        ranker: untrained; trained in place.
        parts: training and held-out episodes, `observations` = latents. costs: cost_to_go of each, (M,), or None.
        visits: how often each row is to be seen, (M,).
        fit: (name, model, data, validation) trains a model.

    Returns:
        The returns that the last round learnt, (M,) for each part.
    """
    train, discount = parts[0], ranker.config["discount"]
    rows = step_rows(train)
    ranker.latents.fit(train["observations"])
    ranker.rewards.fit(train["rewards"][rows])
    if ranker.prices is not None and costs[0] is not None:
        ranker.prices.fit(costs[0][rows])
    returns = [to_go(part["rewards"], part, discount) for part in parts]
    for number in range(1, rounds + 1):
        ranker.returns.fit(returns[0][rows])
        steps = [Steps(*each) for each in zip(parts, returns, costs, visits)]
        fit("ranker" if number == rounds else f"ranker/round_{number}", ranker, *steps)
        if number < rounds:
            values = [ranker.values(part["observations"], cost) for part, cost in zip(parts, costs)]
            returns = [to_go(part["rewards"], part, discount, value, trace) for part, value in zip(parts, values)]
    return returns


def planner_weights(
    ranker: Ranker,
    parts: Sequence[Episodes],
    costs: Sequence[np.ndarray | None],
    trace: float,
    temperature: float,
    bound: float,
) -> list[np.ndarray]:
    """How often the planner is to see the window that starts at each row, (M,) for each part: exp(A / temperature).

    A is the advantage, how much better things went than the ranker expects from there (at the cost that they had), in
    standard deviations of the training data: the TD(lambda) return of a short trace less the value (Schulman et al.
    2016). Weighting the data by its exponential is the policy improvement of Peters and Schaal (2007) and Peng et al.
    (2019).
    """
    values = [ranker.values(part["observations"], cost) for part, cost in zip(parts, costs)]
    returns = [
        to_go(part["rewards"], part, ranker.config["discount"], value, trace) for part, value in zip(parts, values)
    ]
    advantages = [after - before for after, before in zip(returns, values)]
    scale = temperature * max(float(advantages[0][step_rows(parts[0])].std()), 1e-8)
    # beyond the bound lie a few windows, which would crowd out all others
    return [np.exp(np.clip(advantage / scale, -8, bound)) for advantage in advantages]


def occupancy(episodes: Episodes, discount: float, share: float) -> np.ndarray:
    """How often rows are to be seen, (M,), 1 on average: the share by how much they count in a discounted return from
    their episode's start, g^t, which is the weight of states in the policy gradient (Sutton et al. 2000); the rest
    evenly. What follows a start is passed in every episode, but makes few of the rows of long ones.
    """
    rows = np.arange(len(episodes.episode_of_row))
    weights = discount ** (rows - episodes.offsets[episodes.episode_of_row]).astype(np.float64)
    return 1 - share + share * weights / weights[step_rows(episodes)].mean()
