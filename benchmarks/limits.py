"""The limits of this machine, for each second of processor time: python -m benchmarks.limits"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import parse, parser, report, timed
from mpdiffuser.engines import compiled, resolved


def arithmetic(quick: bool = False) -> dict[str, float]:
    """GFLOP a second of processor time, by operation: matrix products and convolutions of a denoiser's shape.

    The convolutions are in torch, in torch with bfloat16, and in the fastest engine that is installed.
    """
    size, batch = (256, 16) if quick else (1024, 128)
    matrix, x = torch.randn(size, size), torch.randn(batch, 128, 32)
    convolution = nn.Conv1d(128, 128, 5, padding=2).eval()
    half, x_half = nn.Conv1d(128, 128, 5, padding=2).eval().bfloat16(), x.bfloat16()
    calls: dict[str, tuple[Callable[[], Any], float]] = {
        "matrix, torch": (lambda: matrix @ matrix, 2 * size**3),
        "convolution, torch": (lambda: convolution(x), work(convolution, x)),
        "convolution, torch, bf16": (lambda: half(x_half), work(half, x_half)),
    }
    engine = resolved("auto", torch.device("cpu"))
    if engine != "torch":
        fast = compiled(convolution, engine, (x[:2],))
        calls[f"convolution, {engine}"] = (lambda: fast(x), work(convolution, x))
    with torch.inference_mode():
        return {name: flops / timed(call, 15)["cpu_ms_best"] / 1e6 for name, (call, flops) in calls.items()}


def bandwidth(quick: bool = False) -> float:
    """GB a second of processor time that a copy reads and writes; the copy is too large for any cache."""
    source = torch.ones(2**22 if quick else 2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), 10)["cpu_ms_best"] / 1e6


def limits(quick: bool = False) -> dict[str, Any]:
    """GFLOP and GB a second of processor time, measured now."""
    rates = arithmetic(quick)
    best = max(rate for name, rate in rates.items() if "bf16" not in name)
    return {"gflops": rates, "best_gflops": best, "copy_gb_s": bandwidth(quick)}


def work(call: Callable[..., Any], *inputs: torch.Tensor) -> float:
    """Floating-point operations of a call's products and convolutions; a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False)
    with counter:
        call(*inputs)
    return float(counter.get_total_flops())


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(__doc__), arguments)
    measured = limits(args.quick)
    rows = [{"limit": name, "rate": rate, "unit": "GFLOP/s a core"} for name, rate in measured["gflops"].items()]
    rows.append({"limit": "memory, copy", "rate": measured["copy_gb_s"], "unit": "GB/s, read and written"})
    report(args, "limits", rows, measured)


if __name__ == "__main__":
    main()
