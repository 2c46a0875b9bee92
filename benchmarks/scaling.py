"""How the cost grows with the size: python -m benchmarks.scaling

Along candidates, horizon, width of the networks and number of environments: processor time of a plan of 4 levels. Along
processes: wall time of a step of 16 environments with pixels. Each row has the exponent k of cost ~ size^k, fitted over
its sizes. For large sizes k is 1 for candidates, horizon and environments, 2 for width, and -1 for processes up to the
number of cores; a smaller k means that larger work uses the machine better.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import parse, parser, report, timed
from benchmarks.limits import limits
from benchmarks.planning import level_work
from envs.record import dm_control_record
from envs.vector import VectorEnv
from experiments.untrained import untrained
from mpdiffuser.engines import ENGINES
from mpdiffuser.machine import available_cores
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder

EXPONENTS = {"candidates": 1, "horizon": 1, "width": 2, "environments": 1, "processes": -1}
SIZES = {
    "candidates": (1, 4, 16, 64, 256),
    "horizon": (16, 32, 64, 128),
    "width": (16, 32, 64, 128),
    "environments": (1, 4, 16, 64),
    "processes": (1, 2, 4),
}


def plan(
    config: SamplerConfig,
    repeats: int,
    rate: float,
    candidates: int = 16,
    horizon: int = 32,
    width: int = 32,
    environments: int = 1,
) -> dict[str, float]:
    """Timing of a plan, and its bound."""
    sizes = {"latent_dim": 11, "action_dim": 3, "horizon": horizon, "width": width, "multipliers": (1, 2, 4)}
    pipeline = untrained(IdentityEncoder(11, 3), Planner(**sizes), Dynamics(**sizes), info={})
    config = replace(config, candidates=candidates)
    sampler, latents = pipeline.sampler(config), torch.zeros(environments, 11)
    generators = [torch.Generator().manual_seed(i) for i in range(environments)]
    found = timed(lambda: pipeline(latents, sampler, generators), repeats)
    flops = environments * candidates * len(sampler.moves) * level_work(pipeline, config.guidance)
    return found | {"bound ms": flops / rate / 1e6}


def decide(processes: int, repeats: int) -> dict[str, float]:
    """Wall time of a step of 16 environments with pixels."""
    task = {"name": "cartpole_swingup", "action_repeat": 4, "size": 64, "camera": 1}
    environments = VectorEnv(dm_control_record(task, "fast"), 16, processes, observation="frames")
    try:
        environments.reset(seed=0)
        found = timed(lambda: environments.step(np.zeros((16, 1), np.float32)), repeats)
    finally:
        environments.close()
    return {key: value for key, value in found.items() if key.startswith("wall")}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """k of cost ~ size^k, by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--engine", default="auto", choices=ENGINES)
    options.add_argument("--along", nargs="*", default=list(SIZES), choices=list(SIZES))
    args = parse(options, arguments)
    measured, repeats = limits(args.quick), 3 if args.quick else 15
    config, rows = SamplerConfig(steps=1 if args.quick else 4, engine=args.engine), []
    for axis in args.along:
        sizes: Sequence[int] = SIZES[axis][:2] if args.quick else SIZES[axis]
        if axis == "processes":
            sizes = [size for size in sizes if size <= max(2, available_cores())]
        cost: Callable[[int], dict[str, float]] = lambda size, axis=axis: (  # type: ignore[misc]  # noqa: E731
            decide(size, repeats)
            if axis == "processes"
            else plan(config, repeats, measured["best_gflops"], **{axis: size})
        )
        found = [cost(size) for size in sizes]
        key = "wall_ms" if axis == "processes" else "cpu_ms"
        fitted = exponent(sizes, [each[key] for each in found])
        for size, each in zip(sizes, found):
            ratio: dict[str, Any] = {"times the bound": each["cpu_ms"] / each["bound ms"]} if "bound ms" in each else {}
            rows.append({"along": axis, "size": size, **each, **ratio, "exponent": fitted, "limit": EXPONENTS[axis]})
    report(args, "scaling", rows, measured)


if __name__ == "__main__":
    main()
