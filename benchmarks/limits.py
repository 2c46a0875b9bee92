"""How we measure, and what this machine can do at best: python -m benchmarks.limits

Wall times stretch with whatever else the machine does; the processor time of this process (all its threads) hardly
does. So every timing is both, and a limit is a rate per second of processor time: of a core, not of the machine.
"""

import argparse
import datetime
import importlib.metadata
import io
import json
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mpdiffuser.engines import compiled, resolved
from mpdiffuser.episodes import Episodes
from mpdiffuser.machine import available_cores, cpu_name, git_commit

PACKAGES = ("torch", "openvino", "onnxruntime", "numpy", "mujoco", "dm_control", "timm")
FOLDER = Path("results/benchmarks")


def timed(call: Callable[[], Any], repeats: int = 20, seconds: float = 5.0) -> dict[str, float]:
    """Milliseconds of a call, after a warm-up: medians and quartiles of wall time and processor time.

    Args:
        repeats, seconds: how often; but 3 times at least, no more are begun after so many seconds.
    """
    call()
    began = time.perf_counter()
    wall: list[float] = []
    core: list[float] = []
    while len(wall) < 3 or (len(wall) < repeats and time.perf_counter() - began < seconds):
        start, start_core = time.perf_counter(), time.process_time()
        call()
        core.append(1e3 * (time.process_time() - start_core))
        wall.append(1e3 * (time.perf_counter() - start))
    return spread("cpu_ms", core) | spread("wall_ms", wall) | {"repeats": len(wall)}


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and least of values, as columns of a row."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high), f"{name}_best": min(values)}


def episodes_of(steps: int, length: int = 1000, observation: int = 11, action: int = 3, size: int = 0) -> Episodes:
    """Random episodes of `steps` steps in all, of states or, where `size` is given, of frames."""
    random, count = np.random.default_rng(0), max(1, steps // length)
    rows = count * (length + 1)
    arrays: dict[str, np.ndarray] = {
        "actions": random.uniform(-1, 1, (rows, action)).astype(np.float32),
        "rewards": random.random(rows, np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    if size:
        arrays["frames"] = random.integers(0, 256, (rows, size, size, 3), np.uint8)
    else:
        arrays["observations"] = random.standard_normal((rows, observation), np.float32)
    arrays["truncations"][length - 1 :: length + 1] = True
    return Episodes(arrays, np.arange(count + 1) * (length + 1))


def arithmetic(quick: bool = False) -> dict[str, float]:
    """The most GFLOP that a second of processor time gives, by who computes and what: matrix products in torch,
    convolutions of a denoiser's shape in torch, in bfloat16, and in the fastest engine that is installed."""
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
    """GB a second of processor time that a copy reads and writes, too large for any cache."""
    source = torch.ones(2**22 if quick else 2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), 10)["cpu_ms_best"] / 1e6


def limits(quick: bool = False) -> dict[str, Any]:
    """What this machine can do, now: GFLOP and GB a second of processor time."""
    rates = arithmetic(quick)
    best = max(rate for name, rate in rates.items() if "bf16" not in name)
    return {"gflops": rates, "best_gflops": best, "copy_gb_s": bandwidth(quick)}


def work(call: Callable[..., Any], *inputs: torch.Tensor) -> float:
    """Floating-point operations of a call: of its products and convolutions, a multiplication and an addition being
    two."""
    counter = FlopCounterMode(display=False)
    with counter:
        call(*inputs)
    return float(counter.get_total_flops())


def machine() -> dict[str, Any]:
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: found[name] for name in PACKAGES if name in found},
        "commit": git_commit(),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
    }


def peak_gib() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that all benchmarks share."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="seconds in all, and figures that mean little")
    result.add_argument("--threads", type=int, default=1, help="torch threads, 1 by default")
    result.add_argument("--folder", type=Path, default=FOLDER, help=f"where the JSON goes, {FOLDER} by default")
    return result


def report(args: argparse.Namespace, name: str, rows: Sequence[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Print rows as a table and the limits below it; write both, and the machine, to <folder>/<name>.json."""
    args.folder.mkdir(parents=True, exist_ok=True)
    here = machine()
    found = {"machine": here, "limits": measured, "peak_gib": peak_gib(), "quick": args.quick, "rows": list(rows)}
    (args.folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))
    print(f"\n{here['cpu']}, {here['cores']} cores, {here['threads']} threads; peak memory {peak_gib():.2f} GiB")
    print(f"limits of this run: {json.dumps(measured, default=str)}\nwritten: {args.folder / f'{name}.json'}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown; of each timing the median and, in brackets, the quartiles."""
    hidden = ("_low", "_high", "_best")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.endswith(hidden)]
    text = io.StringIO()
    text.write(f"| {' | '.join(keys)} |\n{'|---' * len(keys)}|\n")
    for row in rows:
        cells = [cell(row.get(key)) for key in keys]
        for i, key in enumerate(keys):
            if f"{key}_low" in row:
                cells[i] += f" [{cell(row[f'{key}_low'])}, {cell(row[f'{key}_high'])}]"
        text.write(f"| {' | '.join(cells)} |\n")
    return text.getvalue().rstrip()


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(args.threads)
    measured = limits(args.quick)
    rows = [{"limit": name, "rate": rate, "unit": "GFLOP/s a core"} for name, rate in measured["gflops"].items()]
    rows.append({"limit": "memory, copy", "rate": measured["copy_gb_s"], "unit": "GB/s, read and written"})
    report(args, "limits", rows, measured)


if __name__ == "__main__":
    main()
