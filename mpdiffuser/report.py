"""The report of a run, one HTML file: python -m mpdiffuser.report FOLDER"""

import argparse
import base64
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mpdiffuser import report_figures as figures
from mpdiffuser.errors import InputError
from mpdiffuser.report_template import TEMPLATE

LABELS = {
    "ours": "MPDiffuser (planner + dynamics)",
    "planner": "planner only",
    "distilled": "MPDiffuser, distilled",
    "cloning": "behaviour cloning",
    "random": "random actions",
    "expert": "expert",
}
PARTS = ("representation", "decoder", "planner", "dynamics", "ranker", "student", "cloning")
GLOSSARY = (
    ("return", "Sum of the rewards of one episode; higher is better."),
    ("mean ± standard error", "Average over the episodes, and how far it would typically move with other episodes."),
    ("IQM", "Interquartile mean: the average of the middle half of the episodes, which outliers do not move."),
    ("95 % interval", "Percentile bootstrap: the middle 95 % of the IQMs of episodes redrawn with replacement."),
    ("share of the expert's", "Mean return divided by the expert's mean return."),
    ("latent", "The short vector that the encoder makes of what is observed; plans are made of latents and actions."),
    (LABELS["ours"], "Denoising alternates between a planner, which aims at high return, and a dynamics model, which "
     "keeps the latents consistent with the actions; a ranker then chooses among the candidates."),
    (LABELS["distilled"], "A student that draws such plans in one pass of one network."),
    (LABELS["planner"], "The same without the dynamics model's steps."),
    (LABELS["cloning"], "A network that imitates the data's actions, without planning."),
    (LABELS["expert"], "The trained policy that the data collection builds on; it sees the true states."),
    ("plan ms", "Milliseconds to draw and rank all candidate plans, for a whole batch of environments at once or for "
     "one alone. p95: 95 % of the plans took no longer."),
    ("action ms", "Milliseconds from an observation to an action for one environment: encoding, planning, ranking."),
    ("fallbacks", "Plans that failed or were not finite: the last plan was carried on with, or the safe action taken."),
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
        notes=list(explained(metrics)),
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
        for key in ("score", "cost"):
            _check_fields(f"{where}.{key}", method.get(key, {"mean": 0}), ("mean",))
        limit = method.get("limit")
        for key in ("normalised_cost", "within") if limit is not None else ():
            _check_numbers(where, {"limit": limit})
            _check_fields(f"{where}.{key}", method.get(key), (f"{limit:g}",))
        for key in ("plan_ms", "plan_ms_single", "action_ms_single"):
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
    facts = [str(metrics[key]) for key in ("data", "date") if key in metrics]
    if "date" in metrics:
        facts[-1] = facts[-1].replace("T", " ")
    if isinstance(seeds, list) and seeds:
        facts.append(f"seeds {', '.join(map(str, seeds))}" if len(seeds) <= 5 else f"seeds {seeds[0]} … {seeds[-1]}")
    headline = ""
    if "ours" in methods:
        ours = methods["ours"]
        share = _share("ours", methods)
        headline = f"Mean return {' ± '.join(_mean(ours))} over {_plural(len(ours['returns']), 'episode')}"
        headline += f", {share} of the expert’s." if share else "."
        others = [
            f"{_label(key)} {' ± '.join(_mean(methods[key]))}" for key in ("planner", "cloning") if key in methods
        ]
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
    columns = {title: cells for title, cell in COLUMNS.items() if any(cells := [cell(methods[name]) for name in names])}
    rows = [
        {
            "label": _label(name),
            "short": _label(name).partition(" (")[0],
            "color": _color(name),
            "mean": _mean(methods[name])[0],
            "error": "".join(_mean(methods[name])[1:]),
            "share": "" if name == "expert" else _share(name, methods),
            "cells": [cells[i] or "–" for cells in columns.values()],
        }
        for i, name in enumerate(names)
    ]
    figure = figures.returns_figure(
        [
            figures.Returns(name, _label(name), *(methods[name].get(key) for key in ("returns", "iqm", "iqm_interval")))
            for name in names
        ]
    )
    return {
        "methods": rows,
        "columns": list(columns),
        "returns_figure": figure,
        "has_iqm": any("iqm" in method for method in methods.values()),
        "batch": next((m["plan_ms"].get("batch") for m in methods.values() if "plan_ms" in m), None),
    }


def _interval(method: dict[str, Any]) -> str:
    return " to ".join(map(_number, method["iqm_interval"])) if "iqm_interval" in method else ""


def _times(times: dict[str, Any] | None) -> str:
    return f"{_number(times['median'])} / {_number(times['p95'])}" if times else ""


def _limit(method: dict[str, Any]) -> str:
    """The cost limit that the method was told, as a key of what is known for each limit."""
    return "" if method.get("limit") is None else f"{method['limit']:g}"


def explained(metrics: dict[str, Any]) -> Iterator[str]:
    """What the numbers of a suite's task are, a sentence each."""
    suite, methods = metrics.get("suite"), metrics["methods"].values()
    if metrics.get("stand_in"):
        yield f"The data are a stand-in: no number here is a {str(suite).upper()} result."
    score = next((m["score"] for m in methods if {"low", "high"} <= set(m.get("score", ()))), None)
    if score:
        times = "100 " if suite == "d4rl" else ""
        low, high = score["low"], score["high"]
        yield f"Normalised score: {times}(return - low) / (high - low), low {low}, high {high}."
    wanted = metrics.get("settings", {}).get("within")
    if wanted and any(_limit(m) for m in methods):
        yield f"Wanted: {wanted:.0%} of the episodes within the limit that the method was told."


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "episodes": lambda method: str(len(method["returns"])),
    "mean": lambda method: " ± ".join(_mean(method)),
    "IQM": lambda method: _number(method["iqm"]) if "iqm" in method else "",
    "95 % interval": _interval,
    "normalised score": lambda method: " ± ".join(_mean(method["score"])) if "score" in method else "",
    "cost": lambda method: " ± ".join(_mean(method["cost"])) if "cost" in method else "",
    "cost / limit": lambda method: _number(method["normalised_cost"][_limit(method)]) if _limit(method) else "",
    "within limit": lambda method: f"{method['within'][_limit(method)]:.0%}" if _limit(method) else "",
    "plan ms, batch": lambda method: _times(method.get("plan_ms")),
    "plan ms, one": lambda method: _times(method.get("plan_ms_single")),
    "action ms, one": lambda method: _times(method.get("action_ms_single")),
    "fallbacks": lambda method: str(method["fallbacks"]) if "fallbacks" in method else "",
}


def _feasibility(methods: dict[str, Any]) -> dict[str, Any] | None:
    """Figure and table of planned against realised latents, ours against planner-only sampling."""
    series = {}
    for name in ("ours", "planner", *(key for key in methods if key not in LABELS)):
        found = methods.get(name, {}).get("feasibility")
        if found:
            points = {int(k): v for k, v in found.items()}
            series[name] = (_label(name), points)
    if not series:
        return None
    steps = sorted({k for _, points in series.values() for k in points})
    rows = [
        {
            "label": label,
            "color": _color(name),
            "cells": [" ± ".join(_mean(points[k])) if k in points else "–" for k in steps],
        }
        for name, (label, points) in series.items()
    ]
    if {"ours", "planner"} <= set(series):
        ours, planner = series["ours"][1], series["planner"][1]
        comparable = [k in ours and k in planner and ours[k]["mean"] > 0 for k in steps]
        cells = [f"{planner[k]['mean'] / ours[k]['mean']:.2f} ×" if fine else "–" for k, fine in zip(steps, comparable)]
        rows.append({"label": "planner only, relative to MPDiffuser", "color": "", "cells": cells})
    drawn = {
        name: (label, {k: (v["mean"], v.get("standard_error", 0.0)) for k, v in points.items()})
        for name, (label, points) in series.items()
    }
    return {"figure": figures.feasibility_figure(drawn), "steps": steps, "rows": rows}


def _curves(folder: Path) -> Iterator[dict[str, Any]]:
    """A figure for each <part>/log.jsonl that holds a loss."""
    logs = {file.parent.name: file for file in sorted(folder.glob("*/log.jsonl"))}
    for part in [*(key for key in PARTS if key in logs), *(key for key in logs if key not in PARTS)]:
        lines = _read_log(logs[part])
        training, validation = (_losses(lines, key) for key in ("loss", "validation_loss"))
        if len(training) or len(validation):
            label = LABELS["cloning"] if part == "cloning" else part
            yield {"label": label, "figure": figures.curve_figure(part, training, validation)}


def _read_log(file: Path) -> list[dict[str, Any]]:
    """The log's lines; a torn last one (the run was killed, or goes on) is left out."""
    lines = []
    texts = file.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or "step" not in line:
                raise ValueError("no step in it")
            lines.append(line)
        except ValueError as error:
            if number < len(texts):
                raise InputError(f"{file}: line {number} is broken ({error}); remove that line") from error
    return lines


def _losses(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    """(n, 2) steps and finite losses."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(1)]


def _video(file: Path) -> str | None:
    """The video as a data: address."""
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else None


def _stages(stages: dict[str, float]) -> dict[str, Any]:
    longest = max(stages.values(), default=0.0) or 1.0
    rows = [
        {"name": name, "time": _duration(seconds), "percent": round(100 * seconds / longest, 1)}
        for name, seconds in stages.items()
    ]
    return {"stages": rows, "stages_total": _duration(sum(stages.values()))}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _color(name: str) -> str:
    return name if name in LABELS else "faint"


def _share(name: str, methods: dict[str, Any]) -> str:
    """Share of the expert's mean return, where that means something."""
    expert = methods.get("expert", {}).get("mean", 0.0)
    return f"{100 * methods[name]['mean'] / expert:.0f} %" if expert > 0 else ""


def _number(value: float) -> str:
    """Three or four significant digits, without exponents unless tiny."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{max(0, min(6, (3 if size >= 100 else 2) - math.floor(math.log10(size))))}f}"


def _mean(values: dict[str, Any]) -> tuple[str, ...]:
    """Mean and, where known, its standard error with two significant digits; both to the same decimals."""
    error = values.get("standard_error")
    if error is None:
        return (_number(values["mean"]),)
    if error < 1e-6:
        return _number(values["mean"]), _number(error)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{values['mean']:.{decimals}f}", f"{error:.{decimals}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpdiffuser.report", description="Write a run's report.html.")
    parser.add_argument("folder", type=Path, help="the run's folder, with metrics.json in it")
    try:
        print(write_report(parser.parse_args().folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
