"""What all benchmarks share: options, timing, and the report.

Wall time depends on the other programs of the machine; the processor time of this process (all its threads) hardly
does. So every timing has both, and a rate is per second of processor time: of a core, not of the machine.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import pages
from mpdiffuser.machine import available_cores, cpu_name, git_commit

PACKAGES = ("torch", "openvino", "onnxruntime", "numpy", "mujoco", "dm_control", "timm")
FOLDER = Path("results/benchmarks")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    result = pages.parser(doc)
    result.add_argument("--quick", action="store_true", help="a test that takes seconds; its figures mean little")
    result.add_argument("--threads", type=int, default=1, help="torch threads, 1 by default")
    result.add_argument("--folder", type=Path, default=FOLDER, help=f"of the JSON, {FOLDER} by default")
    return result


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options' values; sets the number of torch threads."""
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    return args


def timed(call: Callable[[], Any], repeats: int = 20, seconds: float = 5.0) -> dict[str, float]:
    """Milliseconds of a call, after a warm-up: medians and quartiles of wall time and of processor time.

    Args:
        repeats, seconds: calls at most, and no call begins after `seconds`; 3 calls at least.
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
    """Median, quartiles and minimum of values, as columns of a row."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high), f"{name}_best": min(values)}


def rates(found: dict[str, float], unit: str, amount: float, bound: float) -> dict[str, Any]:
    """Columns of a row: a timing, its rate, and its bound.

    Args:
        found: processor time `cpu_ms` and wall time of `amount` units. bound: the least milliseconds possible.
    """
    rate = {f"{unit} a second of a core": 1e3 * amount / found["cpu_ms"]}
    return {**found, **rate, "bound ms": bound, "times the bound": found["cpu_ms"] / bound}


def machine() -> dict[str, Any]:
    """Processor, versions, commit and time."""
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
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(args: argparse.Namespace, name: str, rows: Sequence[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Print the rows as a table and the limits; write both and the machine to <folder>/<name>.json."""
    args.folder.mkdir(parents=True, exist_ok=True)
    here = machine()
    found = {"machine": here, "limits": measured, "peak_gib": peak_gib(), "quick": args.quick, "rows": list(rows)}
    (args.folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))
    print(f"\n{here['cpu']}, {here['cores']} cores, {here['threads']} threads; peak memory {peak_gib():.2f} GiB")
    print(f"limits of this run: {json.dumps(measured, default=str)}\nwritten: {args.folder / f'{name}.json'}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown. A timing is its median, with the quartiles in brackets."""
    hidden = ("_low", "_high", "_best")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.endswith(hidden)]

    def text(row: dict[str, Any], key: str) -> str:
        quartiles = f" [{cell(row[f'{key}_low'])}, {cell(row[f'{key}_high'])}]" if f"{key}_low" in row else ""
        return cell(row.get(key)) + quartiles

    return pages.table(keys, [[text(row, key) for key in keys] for row in rows]).rstrip("\n")


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
