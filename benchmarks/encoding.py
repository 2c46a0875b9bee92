"""Frames a second of encoders, by backbone, batch and engine: python -m benchmarks.encoding

Untrained weights, 64 x 64 pixels, each network cut at the stride that train_vision.py uses. The bound is the network's
arithmetic at the best rate that this run measured.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import parse, parser, rates, report, timed
from benchmarks.limits import limits, work
from mpdiffuser.engines import ENGINES, compiled, resolved
from vision.backbones import DEFAULT, Backbone

NAMES = (DEFAULT, "timm:mobilenetv3_small_100", "torchvision:resnet18", "conv")


def encode(name: str, engine: str, batch: int, size: int, repeats: int, rate: float) -> dict[str, Any]:
    """A row: features of a batch of frames.

    Args:
        size: pixels a side. rate: GFLOP a second, for the bound.
    """
    net = Backbone(name).eval().requires_grad_(False)
    frames = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8)
    run = compiled(net, engine, (frames[:1].repeat(2, 1, 1, 1),))
    with torch.inference_mode():
        found = rates(timed(lambda: run(frames), repeats), "frames", batch, work(net, frames) / rate / 1e6)
    return {"backbone": name, "engine": engine, "batch": batch, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    engines = [*dict.fromkeys([resolved("auto", torch.device("cpu")), "torch"])]
    options.add_argument("--backbones", nargs="*", default=list(NAMES))
    options.add_argument("--engines", nargs="*", default=engines, choices=ENGINES[1:])
    options.add_argument("--batches", nargs="*", type=int, default=[1, 64])
    options.add_argument("--size", type=int, default=64)
    args = parse(options, arguments)
    if args.quick:
        args.backbones, args.batches = ["conv"], [1, 2]
    measured = limits(args.quick)
    rows = [
        encode(name, engine, batch, args.size, 3 if args.quick else 30, measured["best_gflops"])
        for name in args.backbones
        for engine in args.engines
        for batch in args.batches
    ]
    report(args, "encoding", rows, measured)


if __name__ == "__main__":
    main()
