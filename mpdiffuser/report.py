"""The report of a run, one HTML file: python -m mpdiffuser.report FOLDER"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from mpdiffuser import report_figures as figures
from mpdiffuser.errors import InputError
from mpdiffuser.report_template import TEMPLATE

LABELS = {
    "ours": "MPDiffuser (planner + dynamics)",
    "planner": "planner only",
    "cloning": "behaviour cloning",
    "random": "random actions",
    "expert": "expert",
}
PARTS = ("representation", "decoder", "planner", "dynamics", "ranker", "cloning")
GLOSSARY = (
    ("return", "Sum of the rewards of one episode; higher is better."),
    ("mean ± standard error", "Average over the episodes, and how far it would typically move with other episodes."),
    ("IQM", "Interquartile mean: the average of the middle half of the episodes, which outliers do not move."),
    ("95 % interval", "Percentile bootstrap: the middle 95 % of the IQMs of episodes redrawn with replacement."),
    ("share of the expert's", "Mean return divided by the expert's mean return."),
    ("latent", "The short vector that the encoder makes of what is observed; plans are made of latents and actions."),
    (LABELS["ours"], "Denoising alternates between a planner, which aims at high return, and a dynamics model, which "
     "keeps the latents consistent with the actions; a ranker then chooses among the candidates."),
    (LABELS["planner"], "The same without the dynamics model's steps."),
    (LABELS["cloning"], "A network that imitates the data's actions, without planning."),
    (LABELS["expert"], "The trained policy that the data collection builds on; it sees the true states."),
    ("plan ms", "Milliseconds to draw and rank all candidate plans, for a whole batch of environments at once or for "
     "one alone. p95: 95 % of the plans took no longer."),
)  # fmt: skip


def write_report(folder: str | Path) -> Path:
    """Write `<folder>/report.html` from metrics.json and, where there, */log.jsonl and video.mp4.

    Returns:
        The report: one file that needs no other and no network.

    Raises:
        InputError: if metrics.json or a log is missing or broken, naming the file and field.
    """
    folder = Path(folder)
    metrics = _read_metrics(folder / "metrics.json")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE).render(
        **_facts(metrics),
        **_returns(metrics["methods"]),
        feasibility=_feasibility(metrics["methods"]),
        video=_video(folder / "video.mp4"),
        curves=list(_curves(folder)),
        **_stages(metrics.get("stages", {})),
        settings=list(_flatten(metrics.get("settings", {}))),
        machine=list(_flatten(metrics.get("machine", {}))),
        glossary=GLOSSARY,
    )
    file = folder / "report.html"
    partial = file.with_name(file.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)
    return file


def _read_metrics(file: Path) -> dict[str, Any]:
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


def _check(metrics: Any) -> None:
    """What is there must be of its kind; only methods, with their returns and means, must be there."""
    if not isinstance(metrics, dict) or not isinstance(metrics.get("methods"), dict) or not metrics["methods"]:
        raise InputError("must be an object with `methods`, at least one")
    for key in ("settings", "machine", "stages"):
        if not isinstance(metrics.get(key, {}), dict):
            raise InputError(f"{key} must be an object, found {metrics[key]!r}")
    _check_numbers("stages", metrics.get("stages", {}))
    for name, method in metrics["methods"].items():
        where = f"methods.{name}"
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
        for key in ("plan_ms", "plan_ms_single"):
            _check_fields(f"{where}.{key}", method.get(key, {"median": 0, "p95": 0}), ("median", "p95"))
        feasibility = method.get("feasibility", {})
        if not isinstance(feasibility, dict) or not all(k.isdecimal() and int(k) > 0 for k in feasibility):
            raise InputError(f"{where}.feasibility must map steps ahead to distances, found {feasibility!r}")
        for steps, value in feasibility.items():
            _check_fields(f"{where}.feasibility.{steps}", value, ("mean",))
            _check_numbers(f"{where}.feasibility.{steps}", value)


def _check_fields(where: str, value: Any, fields: tuple[str, ...]) -> None:
    if not isinstance(value, dict) or not set(fields) <= set(value):
        raise InputError(f"{where} must be an object with {' and '.join(fields)}, found {value!r}")
    _check_numbers(where, {key: value[key] for key in fields})


def _check_numbers(where: str, values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{where}.{key} must be a finite number, found {value!r}")


def _facts(metrics: dict[str, Any]) -> dict[str, Any]:
    """Task, date, the sentence that sums up, the command."""
    methods = metrics["methods"]
    seeds = metrics.get("seeds") or []
    facts = [str(metrics[key]) for key in ("data", "date") if isinstance(metrics.get(key), str)]
    if isinstance(seeds, list) and seeds:
        facts.append(f"seeds {', '.join(map(str, seeds))}" if len(seeds) <= 5 else f"seeds {seeds[0]} … {seeds[-1]}")
    headline = ""
    if "ours" in methods:
        ours = methods["ours"]
        error = f" ± {_number(ours['standard_error'])}" if "standard_error" in ours else ""
        share = _share("ours", methods)
        headline = f"Mean return {_number(ours['mean'])}{error} over {_plural(len(ours['returns']), 'episode')}"
        headline += f", {share} of the expert’s." if share else "."
        others = [f"{_label(key)} {_number(methods[key]['mean'])}" for key in ("planner", "cloning") if key in methods]
        headline += f" Baselines: {', '.join(others)}." if others else ""
    return {
        "task": str(metrics.get("task", "")),
        "facts": facts,
        "headline": headline,
        "command": metrics.get("command"),
    }


def _returns(methods: dict[str, Any]) -> dict[str, Any]:
    """Cards, the table (without the columns that nobody fills) and the figure."""
    names = [*(key for key in LABELS if key in methods), *(key for key in methods if key not in LABELS)]
    cells = {name: _cells(methods[name]) for name in names}
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    order = list(_cells({"returns": [0], "mean": 0, **_FULL}))
    columns.sort(key=lambda column: order.index(column) if column in order else len(order))
    rows = [
        {
            "label": _label(name),
            "color": _color(name),
            "mean": _number(methods[name]["mean"]),
            "error": _number(methods[name]["standard_error"]) if "standard_error" in methods[name] else "",
            "share": "" if name == "expert" else _share(name, methods),
            "cells": [cells[name].get(column, "–") for column in columns],
        }
        for name in names
    ]
    figure = figures.returns_figure(
        [
            figures.Returns(
                name,
                _label(name),
                methods[name]["returns"],
                methods[name].get("iqm"),
                tuple(methods[name]["iqm_interval"]) if "iqm_interval" in methods[name] else None,
            )
            for name in names
        ]
    )
    has_iqm = any("iqm" in method for method in methods.values())
    return {"methods": rows, "columns": columns, "returns_figure": figure, "has_iqm": has_iqm}
