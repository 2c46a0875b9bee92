"""What a plan costs: python -m benchmarks.planning --help

First plans from states, with untrained networks, 11 + 3 dimensions, horizon 32 and guidance 2: at each level two passes
of the planner and one of the dynamics model. The cost of a level is the slope between few and many levels; its bound is
its arithmetic at the best rate that this run measured (benchmarks.limits). Then the time from a frame to an action,
with the settings of train_vision.py, or with a pipeline that sees pixels and its own settings.

    python -m benchmarks.planning --engines openvino torch --candidates 64 --sizes reference
    python -m benchmarks.planning --pipeline results/cartpole_swingup-mixed/pipeline
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import parse, parser, report, timed
from benchmarks.limits import limits, work
from experiments.untrained import untrained
from mpdiffuser.config import load, settings
from mpdiffuser.controller import Controller
from mpdiffuser.engines import ENGINES, FASTEST, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder, PixelEncoder

SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 32, "multipliers": (1, 2)},  # the default of train_vision.py
    "reference": {"width": 32, "multipliers": (1, 2, 4)},
    "medium": {"width": 64, "multipliers": (1, 2, 4), "embedding": 128},
    "large": {"width": 128, "multipliers": (1, 4, 8), "embedding": 128},
}


def states_pipeline(size: str, latent_dim: int = 11, action_dim: int = 3, horizon: int = 32) -> MPDiffuserPipeline:
    """An untrained pipeline on states."""
    sizes = {"latent_dim": latent_dim, "action_dim": action_dim, "horizon": horizon, **SIZES[size]}
    return untrained(IdentityEncoder(latent_dim, action_dim), Planner(**sizes), Dynamics(**sizes), info={})


def pixels_pipeline() -> MPDiffuserPipeline:
    """An untrained pipeline on pixels, of the sizes and settings of train_vision.py for cartpole."""
    cfg = load("vision", [])
    encoder = PixelEncoder(**{k: v for k, v in settings(cfg.encoder).items() if k not in ("pretrained", "download")})
    sizes = {"latent_dim": encoder.config["latent_dim"], "action_dim": 1, "horizon": cfg.horizon}
    planner, dynamics = Planner(**sizes, **settings(cfg.planner)), Dynamics(**sizes, **settings(cfg.dynamics))
    record = Record({"frames": Observation(PICTURE, (cfg.task.size, cfg.task.size, 3))}, Actions.unit(1))
    return untrained(encoder, planner, dynamics, {"record": record.to_json()}, settings(cfg.sampler))


def level_work(pipeline: MPDiffuserPipeline, guidance: float) -> float:
    """Floating-point operations of a level for one candidate."""
    passes = 1 if guidance in (0, 1) else 2
    planner, dynamics = (work(model, *model.example()) / 2 for model in (pipeline.planner, pipeline.dynamics))
    return passes * planner + dynamics


def plan(pipeline: MPDiffuserPipeline, config: SamplerConfig, repeats: int, whole: bool) -> dict[str, float]:
    """Timing of a plan for one environment; whole: as one graph, else level by level."""
    sampler, generator = pipeline.sampler(config), torch.Generator().manual_seed(0)
    latents, shape = torch.zeros(1, pipeline.planner.config["latent_dim"]), (1, *pipeline.noise_shape(config))
    noise: Any = [generator] if whole else lambda: torch.randn(shape, generator=generator)
    return timed(lambda: pipeline(latents, sampler, noise), repeats)


def level(
    pipeline: MPDiffuserPipeline,
    config: SamplerConfig,
    steps: Sequence[int],
    repeats: int,
    rate: float,
    whole: bool,
) -> dict[str, Any]:
    """A row: a plan with the larger number of levels, and the cost of a level with its bound.

    Args:
        steps: a small and a large number of levels. rate: GFLOP a second, for the bound. whole: see `plan`.
    """
    few, many = (plan(pipeline, replace(config, steps=count), repeats, whole) for count in steps)
    slope = {key: (many[key] - few[key]) / (steps[1] - steps[0]) for key in ("cpu_ms", "cpu_ms_best", "wall_ms")}
    bound = config.candidates * level_work(pipeline, config.guidance) / rate / 1e6
    return {
        "engine": config.engine,
        "one graph": whole,
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
    assert pipeline.record is not None
    (camera,) = pipeline.record.observations.values()
    frames = np.random.default_rng(0).integers(0, 256, (1, *camera.shape), np.uint8)
    encoder, frame = pipeline.networks.frame_encoder(config.engine), torch.from_numpy(frames)
    with torch.inference_mode():
        encode = timed(lambda: encoder(frame), repeats)
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
    options.add_argument("--levels", nargs=2, type=int, default=[2, 10], help="a small and a large number")
    options.add_argument("--pipeline", type=Path, help="of pixels, in place of an untrained one")
    options.add_argument("--repeats", type=int, default=30)
    args = parse(options, arguments)
    if args.quick:
        args.sizes, args.candidates, args.levels, args.repeats = ["small"], args.candidates[:2], [1, 2], 3
    pixels = MPDiffuserPipeline.from_pretrained(args.pipeline) if args.pipeline else pixels_pipeline()
    if not pixels.sees_pixels:
        raise InputError(f"--pipeline: must be a pipeline on pixels, found {args.pipeline}")
    measured, rows = limits(args.quick), []
    for size in args.sizes:
        pipeline = states_pipeline(size)
        for engine in args.engines:
            for count in args.candidates:
                for guidance in args.guidance:
                    config = SamplerConfig(candidates=count, guidance=guidance, engine=engine)
                    for whole in (True, False) if engine in FASTEST else (False,):
                        row = level(pipeline, config, args.levels, args.repeats, measured["best_gflops"], whole)
                        rows.append({"network": size, **row})
    for engine in args.engines:
        for count in args.candidates:
            row = act(pixels, replace(pixels.sampler_defaults, candidates=count, engine=engine), args.repeats)
            rows.append({"network": str(args.pipeline or "train_vision.py"), **row})
    report(args, "planning", rows, measured)


if __name__ == "__main__":
    main()
