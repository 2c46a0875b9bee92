"""Read metrics.json, check its fields, and explain its numbers."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.statistics import paired_difference
from mpdiffuser.errors import InputError
from mpdiffuser.tuning import describe


def read_metrics(file: Path) -> dict[str, Any]:
    """Read the metrics of an evaluation.

    Raises:
        InputError: if the file is missing or not JSON, or a field has a wrong type. The message names file and field.
    """
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; evaluate first (evaluate.py writes it)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); evaluate again") from error
    try:
        _check(metrics)
    except InputError as error:
        raise InputError(f"{file}: {error}; evaluate again") from None
    return metrics


def limit_key(method: dict[str, Any]) -> str:
    """Return the method's cost limit as a key of `normalised_cost` and `share_within_limit`; "" without a limit."""
    return "" if method.get("limit") is None else f"{method['limit']:g}"


def with_differences(methods: dict[str, Any], reference: str) -> dict[str, Any]:
    """Return the methods, each with its paired `difference` to a reference that was run on the same episodes.

    A row with a cost limit is compared with the reference within the same limit, if there is one.
    """
    found = {}
    for row, method in methods.items():
        other = reference_row(row, reference, methods)
        returns = methods[other]["returns"]
        paired = row != other and len(method["returns"]) == len(returns)
        found[row] = method | ({"difference": paired_difference(method["returns"], returns)} if paired else {})
    return found


def reference_row(row: str, reference: str, methods: Iterable[str]) -> str:
    """Return the row that a row is compared with: the reference, within the same cost limit if there is such a row."""
    _, within, limit = row.partition(" within ")
    same = reference + within + limit
    return same if same in methods else reference


def explanations(metrics: dict[str, Any]) -> Iterator[str]:
    """Yield sentences that explain the numbers of a suite; none without a suite."""
    suite, methods = metrics.get("suite"), metrics["methods"].values()
    if metrics.get("stand_in"):
        yield f"The data are a stand-in for the suite's: no number here is a {str(suite).upper()} result."
    score = next((m["score"] for m in methods if {"low", "high"} <= set(m.get("score", ()))), None)
    if score:
        times = "100 " if suite in ("d4rl", "ogbench") else ""
        low, high = score["low"], score["high"]
        yield f"Normalised score: {times}(return - low) / (high - low), low {low}, high {high}."
    probability = metrics.get("settings", {}).get("safety_probability")
    if probability and any(map(limit_key, methods)):
        yield f"Target: {probability:.0%} of the episodes within the method's cost limit."
    for name, method in metrics["methods"].items():
        if ticks := method.get("real_time"):
            times = "no new plan was finished"
            if "plan_ms_median" in ticks:
                times = f"a plan took {ticks['plan_ms_median']:.1f} ms (median), {ticks['plan_ms_p99']:.1f} ms (p99)"
            yield (
                f"{name} in real time: {ticks['late']} of {ticks['ticks']} ticks began more than a tenth of a period "
                f"late, {ticks['fallbacks']} had no plan; {times}, the oldest followed plan was "
                f"{ticks['plan_age_max']} ticks old."
            )
    for name, record in metrics.get("levels", {}).items():
        rows = ("planner", "mpdiffuser") if name == "planner" else (name,)
        if any(metrics["methods"].get(row, {}).get("levels") == record["levels"] for row in rows):
            yield f"{name}: {describe(record)}."


def _check(metrics: Any) -> None:
    """Raise InputError for a wrong field. Required are methods, each with returns and mean. Others are optional."""
    if not isinstance(metrics, dict) or not isinstance(metrics.get("methods"), dict) or not metrics["methods"]:
        raise InputError("must be an object with `methods`, at least one")
    for key in ("settings", "machine", "stages", "levels"):
        if not isinstance(metrics.get(key, {}), dict):
            raise InputError(f"{key} must be an object, found {metrics[key]!r}")
    _check_numbers("stages", metrics.get("stages", {}))
    for name, record in metrics.get("levels", {}).items():
        _check_fields(f"levels.{name}", record, ("levels", "windows", "episodes"))
        errors = record.get("errors")
        _check_fields(f"levels.{name}.errors", errors, (f"{record['levels']}",))
        _check_numbers(f"levels.{name}.errors", errors)
    for name, method in metrics["methods"].items():
        _check_method(f"methods.{name}", method)


def _check_method(where: str, method: Any) -> None:
    if not isinstance(method, dict) or not {"returns", "mean"} <= set(method):
        raise InputError(f"{where} must be an object with returns and mean")
    returns = method["returns"]
    if not isinstance(returns, list) or not returns:
        raise InputError(f"{where}.returns must be a list of numbers, found {returns!r}")
    _check_numbers(f"{where}.returns", dict(enumerate(returns)))
    _check_numbers(where, {key: method[key] for key in ("mean", "standard_error", "iqm") if key in method})
    interval = method.get("iqm_interval", [0.0, 0.0])
    if not isinstance(interval, list) or len(interval) != 2:
        raise InputError(f"{where}.iqm_interval must be two numbers, found {interval!r}")
    _check_numbers(f"{where}.iqm_interval", dict(enumerate(interval)))
    for key in ("score", "cost"):
        _check_fields(f"{where}.{key}", method.get(key, {"mean": 0}), ("mean",))
    if method.get("limit") is not None:
        _check_numbers(where, {"limit": method["limit"]})
        for key in ("normalised_cost", "share_within_limit"):
            _check_fields(f"{where}.{key}", method.get(key), (limit_key(method),))
    for key in ("plan_ms", "plan_ms_single", "action_ms_single"):
        _check_fields(f"{where}.{key}", method.get(key, {"median": 0, "p95": 0}), ("median", "p95"))
    if "real_time" in method:
        needed = ("ticks", "late", "fallbacks", "plan_age_max")
        _check_fields(f"{where}.real_time", method["real_time"], needed)
        _check_numbers(f"{where}.real_time", method["real_time"])
        if ("plan_ms_median" in method["real_time"]) != ("plan_ms_p99" in method["real_time"]):
            raise InputError(f"{where}.real_time must have both plan_ms_median and plan_ms_p99, or none of them")
    feasibility = method.get("feasibility", {})
    if not isinstance(feasibility, dict) or not all(k.isdecimal() and int(k) > 0 for k in feasibility):
        raise InputError(f"{where}.feasibility must map steps ahead to distances, found {feasibility!r}")
    for steps, value in feasibility.items():
        _check_fields(f"{where}.feasibility.{steps}", value, ("mean",))
        _check_numbers(f"{where}.feasibility.{steps}", value)


def _check_fields(where: str, value: Any, fields: tuple[str, ...]) -> None:
    """Raise InputError unless a value is an object with these fields, each a number."""
    if not isinstance(value, dict) or not set(fields) <= set(value):
        raise InputError(f"{where} must be an object with {' and '.join(fields)}, found {value!r}")
    _check_numbers(where, {key: value[key] for key in fields})


def _check_numbers(where: str, values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{where}.{key} must be a finite number, found {value!r}")
