"""What a plan costs: python -m benchmarks.planning --help

Untrained networks, which cost what trained ones do; 11 + 3 dimensions, horizon 32, guidance 2 on the planner: at each
level two passes of it and one of the dynamics model. A level is the slope between few and many levels; its bound is its
arithmetic at the best rate that this run measured (benchmarks.limits). Then, from a frame to an action: the settings of
train_vision.py, or any pipeline that sees pixels.

    python -m benchmarks.planning --engines openvino torch --candidates 64 --sizes reference
    python -m benchmarks.planning --pipeline results/cartpole_swingup-mixed/pipeline
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vision  # noqa: F401  the encoder classes that a pipeline folder may name
from benchmarks.limits import limits, parser, report, timed, work
from mpdiffuser.config import load, settings
from mpdiffuser.controller import Controller
from mpdiffuser.engines import ENGINES, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.training import sampler_config
from vision.encoder import IdentityEncoder, PixelEncoder

SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 32, "multipliers": (1, 2)},  # the default of train_vision.py
    "reference": {"width": 32, "multipliers": (1, 2, 4)},
    "medium": {"width": 64, "multipliers": (1, 2, 4), "embedding": 128},
    "large": {"width": 128, "multipliers": (1, 4, 8), "embedding": 128},
}


def states_pipeline(size: str, latent_dim: int = 11, action_dim: int = 3, horizon: int = 32) -> MPDiffuserPipeline:
    """From states, untrained."""
    sizes = {"latent_dim": latent_dim, "action_dim": action_dim, "horizon": horizon, **SIZES[size]}
    return untrained(IdentityEncoder(latent_dim, action_dim), Planner(**sizes), Dynamics(**sizes), info={})


def pixels_pipeline() -> MPDiffuserPipeline:
    """From pixels, as train_vision.py would make it for cartpole; untrained."""
    cfg = load("vision", [])
    encoder = PixelEncoder(**{k: v for k, v in settings(cfg.encoder).items() if k not in ("pretrained", "download")})
    sizes = {"latent_dim": encoder.config["latent_dim"], "action_dim": 1, "horizon": cfg.horizon}
    planner, dynamics = Planner(**sizes, **settings(cfg.planner)), Dynamics(**sizes, **settings(cfg.dynamics))
    info = {"observation": {"shape": [cfg.task.size, cfg.task.size, 3], "dtype": "uint8"}}
    return untrained(encoder, planner, dynamics, info)


def untrained(encoder: Any, planner: Planner, dynamics: Dynamics, info: dict[str, Any]) -> MPDiffuserPipeline:
    d, m = (planner.config[key] for key in ("latent_dim", "action_dim"))
    normalizers = Normalizer(d).fit(np.eye(d) * 3), Normalizer(m).fit(np.array([[-1.0] * m, [1.0] * m]))
    ranker, condition = Ranker(d, m), Marginals(1).fit(np.linspace(-1, 1, 9)[:, None])
    models = [model.eval() for model in (encoder, planner, dynamics, ranker)]
    return MPDiffuserPipeline(
        models[0], *normalizers, condition, models[1], models[2], models[3], NoiseSchedule(), info=info
    )


def level_work(pipeline: MPDiffuserPipeline, guidance: float) -> float:
    """FLOP of a level for one candidate."""
    passes = 1 if guidance in (0, 1) else 2
    planner, dynamics = (work(model, *model.example()) / 2 for model in (pipeline.planner, pipeline.dynamics))
    return passes * planner + dynamics


def plan(pipeline: MPDiffuserPipeline, config: SamplerConfig, repeats: int) -> dict[str, float]:
    """Times of a plan for one environment."""
    sampler, generator = pipeline.sampler(config), torch.Generator().manual_seed(0)
    latents = torch.zeros(1, pipeline.planner.config["latent_dim"])
    return timed(lambda: pipeline(latents, sampler, [generator]), repeats)


def level(
    pipeline: MPDiffuserPipeline, config: SamplerConfig, steps: Sequence[int], repeats: int, rate: float
) -> dict[str, Any]:
    """A row: a plan with the most of `steps` levels, and of a level the slope between them, beside its bound."""
    few, many = (plan(pipeline, replace(config, steps=count), repeats) for count in steps)
    slope = {key: (many[key] - few[key]) / (steps[1] - steps[0]) for key in ("cpu_ms", "cpu_ms_best", "wall_ms")}
    bound = config.candidates * level_work(pipeline, config.guidance) / rate / 1e6
    return {
        "engine": config.engine,
        "candidates": config.candidates,
        "levels": steps[1],
        "guidance": config.guidance,
        **{f"plan {key}": value for key, value in many.items() if key != "repeats"},
        **{f"level {key}": value for key, value in slope.items()},
        "level bound ms": bound,
        "times the bound": slope["cpu_ms"] / bound,
    }


def act(pipeline: MPDiffuserPipeline, config: SamplerConfig, repeats: int) -> dict[str, Any]:
    """A row: from a frame to an action."""
    controller = Controller(pipeline, config)
    frames = np.random.default_rng(0).integers(0, 256, (1, *pipeline.config["info"]["observation"]["shape"]), np.uint8)
    see, seen = pipeline.features(config.engine), torch.from_numpy(frames)
    with torch.inference_mode():
        encode = timed(lambda: see(seen), repeats)
    found = timed(lambda: controller.act(frames), repeats)
    return {
        "engine": config.engine,
        "candidates": config.candidates,
        "levels": config.steps,
        **{f"frame to action {key}": value for key, value in found.items() if key != "repeats"},
        "of it encoding cpu_ms": encode["cpu_ms"],
        "encoding wall_ms": encode["wall_ms"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    fastest = resolved("auto", torch.device("cpu"))
    options.add_argument("--engines", nargs="*", default=[*dict.fromkeys([fastest, "torch"])], choices=ENGINES[1:])
    options.add_argument("--sizes", nargs="*", default=["reference"], choices=list(SIZES), help="of the networks")
    options.add_argument("--candidates", nargs="*", type=int, default=[1, 4, 16, 64])
    options.add_argument(
        "--guidance", nargs="*", type=float, default=[2.0], help="0 and 1 need one pass of the planner"
    )
    options.add_argument("--levels", nargs=2, type=int, default=[2, 10], help="few and many")
    options.add_argument("--pipeline", type=Path, help="one that sees pixels, in place of an untrained one")
    options.add_argument("--repeats", type=int, default=30)
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.quick:
        args.sizes, args.candidates, args.levels, args.repeats = ["small"], args.candidates[:2], [1, 2], 3
    pixels = MPDiffuserPipeline.from_pretrained(args.pipeline) if args.pipeline else pixels_pipeline()
    if not pixels.sees_pixels:
        raise InputError(f"--pipeline: must say in its info what frames it sees, found {args.pipeline}; train it anew")
    measured, rows = limits(args.quick), []
    for size in args.sizes:
        pipeline = states_pipeline(size)
        for engine in args.engines:
            for count in args.candidates:
                for guidance in args.guidance:
                    config = SamplerConfig(candidates=count, guidance=guidance, engine=engine)
                    row = level(pipeline, config, args.levels, args.repeats, measured["best_gflops"])
                    rows.append({"network": size, **row})
    base = sampler_config(load("vision", []).sampler)
    for engine in args.engines:
        for count in args.candidates:
            row = act(pixels, replace(base, candidates=count, engine=engine), args.repeats)
            rows.append({"network": str(args.pipeline or "train_vision.py"), **row})
    report(args, "planning", rows, measured)


if __name__ == "__main__":
    main()
