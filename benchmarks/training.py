"""What a training step costs, by model and precision: python -m benchmarks.training

Runs the trainer on random episodes with batch 64 and the models of train_vision.py; `reference` is a U-Net of width 32,
(1, 2, 4), horizon 32. The bound is the arithmetic of a forward and a backward pass at the best float32 rate that this
run measured.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.common import parse, parser, rates, report, spread
from benchmarks.limits import limits, work
from benchmarks.planning import SIZES
from experiments.untrained import random_episodes
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Steps, Windows, to_go

DIMS = {"latent_dim": 11, "action_dim": 3}
MODELS: dict[str, Callable[[], Any]] = {
    "planner, reference": lambda: Planner(**DIMS, **SIZES["reference"]),
    "dynamics, reference": lambda: Dynamics(**DIMS, **SIZES["reference"]),
    "planner, small": lambda: Planner(**DIMS, horizon=16, **SIZES["small"]),
    "planner, medium": lambda: Planner(**DIMS, **SIZES["medium"]),
    "ranker": lambda: Ranker(**DIMS),
    "cloning": lambda: CloningPolicy(**DIMS),
}


def train(name: str, precision: str, steps: int, rate: float) -> dict[str, Any]:
    """A row: times of the trainer's steps, from its log."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    torch.manual_seed(0)
    episodes, model, schedule = random_episodes(20, 1000, 11, 3), MODELS[name](), NoiseSchedule()
    returns = to_go(episodes["rewards"], episodes, 0.99)
    normalizers = Normalizer(11).fit(episodes["observations"]), Normalizer(3).fit(episodes["actions"])
    condition = Marginals(1).fit(returns[:, None])
    horizon = model.config.get("horizon", 8)
    data: Any = Steps(episodes, returns)
    if not isinstance(model, Ranker):
        data = Windows(episodes, returns[:, None], horizon, *normalizers, condition)
    every = max(1, steps // 10)
    config = TrainConfig(steps=steps, log_every=every, validate_every=10 * steps, checkpoint_every=10 * steps)
    batch = data.batch(torch.arange(config.batch_size))
    random = model.draw(config.batch_size, schedule, torch.Generator().manual_seed(0))
    flops = work(lambda: model.loss(batch, random, schedule)["loss"].backward())
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(name, model, data, data, config, folder, accelerator, schedule).train()
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "core_s" in line][2:]  # the first steps warm up
    core, wall = (1e3 * np.array([line[key] for line in logged]) for key in ("core_s", "update_s"))
    times = spread("cpu_ms", core.tolist()) | spread("wall_ms", wall.tolist())
    return {
        "model": name,
        "precision": precision,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "waiting for data ms": 1e3 * float(np.median([line["data_s"] for line in logged])),
        **rates(times, "steps", 1, flops / rate / 1e6),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--precisions", nargs="*", default=["no", "bf16"], choices=["no", "bf16"])
    options.add_argument("--steps", type=int, default=100)
    args = parse(options, arguments)
    if args.quick:
        args.models, args.precisions, args.steps = ["planner, small", "ranker"], ["no"], 5
    measured = limits(args.quick)
    pairs = [(name, precision) for name in args.models for precision in args.precisions]
    rows = [train(*pair, args.steps, measured["best_gflops"]) for pair in pairs]
    report(args, "training", rows, measured)


if __name__ == "__main__":
    main()
