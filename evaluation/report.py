"""Write the report of a run as one HTML file: python -m evaluation.report FOLDER"""

import argparse
import base64
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from evaluation import report_figures as figures
from evaluation.labels import color_name, colors, descriptions, in_order, label, reference_of, short_label
from evaluation.metrics_schema import explanations, limit_key, read_metrics, with_differences
from evaluation.report_template import TEMPLATE
from mpdiffuser.console import quiet_pipes
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole

GLOSSARY = (
    ("return", "Sum of the rewards of one episode; higher is better."),
    ("mean ± standard error", "Average over the episodes, and how far it would typically move with other episodes."),
    ("IQM", "Interquartile mean: the average of the middle half of the episodes. Outliers do not move it."),
    ("95 % interval", "Percentile bootstrap: the middle 95 % of the IQMs of episodes redrawn with replacement."),
    ("minus another method", "Mean difference of the returns, episode by episode, and its standard error. Episodes of "
     "two methods begin in the same state, and plans are drawn from the same noise."),
    ("share of the expert's", "Mean return divided by the mean return of the expert."),
    ("latent", "The short vector that the encoder makes of an observation. Plans consist of latents and actions."),
    ("plan ms", "Milliseconds to draw and rank all candidate plans, for a whole batch of environments at once or for "
     "one alone. p95: 95 % of the plans took no longer."),
    ("action ms", "Milliseconds from an observation to an action for one environment: encoding, planning, ranking."),
    ("fallbacks", "Plans that failed or were not finite. The controller then followed the last plan, or took the safe "
     "action."),
)  # fmt: skip


def write_report(folder: str | Path) -> Path:
    """Write `<folder>/report.html` from metrics.json and, if they exist, */log.jsonl and video.mp4.

    Returns:
        The path of the report. It needs no other files and no network.

    Raises:
        InputError: if metrics.json is missing, or metrics.json or a log is damaged. The message names file and field.
    """
    folder = Path(folder)
    metrics = read_metrics(folder / "metrics.json")
    methods = {row: metrics["methods"][row] for row in in_order(metrics["methods"])}
    methods = with_differences(methods, reference_of(methods))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE).render(
        colors=colors(),
        **_facts(metrics, methods),
        **_returns(methods),
        scores=_table(methods, SCORES),
        times=_table(methods, TIMES),
        notes=list(explanations(metrics)),
        feasibility=_feasibility(methods),
        video=_video(folder / "video.mp4"),
        curves=list(_curves(folder, metrics.get("stages", {}))),
        **_stages(metrics.get("stages", {})),
        settings=list(_settings(metrics)),
        machine=list(_flatten(metrics.get("machine", {}))),
        glossary=[*GLOSSARY, *descriptions(methods)],
    )
    file = folder / "report.html"
    write_whole(file, page)
    return file


def _facts(metrics: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """Return the task, the date and seeds, the headline, and the command."""
    seeds = metrics.get("seeds") or []
    facts = [str(metrics["date"]).replace("T", " ")] if "date" in metrics else []
    if isinstance(seeds, list) and seeds:
        facts.append(f"seeds {', '.join(map(str, seeds))}" if len(seeds) <= 5 else f"seeds {seeds[0]} … {seeds[-1]}")
    return {
        "task": str(metrics.get("task", "")),
        "facts": facts,
        "headline": _headline(methods),
        "command": metrics.get("command"),
    }


def _headline(methods: dict[str, Any]) -> str:
    """Return a sentence with the mean returns; "" without results of MPDiffuser."""
    if "mpdiffuser" not in methods:
        return ""
    decimals = _decimals(methods.values())
    means = {row: "\u00a0±\u00a0".join(_rounded(method, decimals)) for row, method in methods.items()}
    share = _share("mpdiffuser", methods)
    episodes = _plural(len(methods["mpdiffuser"]["returns"]), "episode")
    sentence = f"Mean return {means['mpdiffuser']} over {episodes}{f', {share} of the expert’s' if share else ''}."
    others = [f"{label(row)} {means[row]}" for row in ("planner", "cloning") if row in methods]
    return f"{sentence} Baselines: {', '.join(others)}." if others else sentence


def _returns(methods: dict[str, Any]) -> dict[str, Any]:
    """Return the cards, the table and the figure of the returns. All cards have the same number of decimals."""
    decimals = _decimals(methods.values())
    cards = []
    for row, method in methods.items():
        mean, *error = _rounded(method, decimals)
        share = "" if row == "expert" else _share(row, methods)
        card = {"label": short_label(row), "color": color_name(row), "mean": mean, "error": "".join(error)}
        cards.append(card | {"share": share})
    rows = [
        figures.Returns(row, label(row), *(method.get(key) for key in ("returns", "iqm", "iqm_interval")))
        for row, method in methods.items()
    ]
    reference = short_label(reference_of(methods))
    batch = next((method["plan_ms"].get("batch") for method in methods.values() if "plan_ms" in method), None)
    return {
        "cards": cards,
        "returns": _table(methods, {title.format(reference=reference): cell for title, cell in RETURNS.items()}),
        "returns_figure": figures.returns_figure(rows),
        "has_iqm": any("iqm" in method for method in methods.values()),
        "batch": _plural(batch, "environment") if batch else "",
    }


Cell = Callable[[dict[str, Any]], str]


def _table(methods: dict[str, Any], columns: Mapping[str, Cell]) -> dict[str, Any] | None:
    """Return titles and rows, without empty columns and rows; None if all are empty."""
    cells = {title: [cell(method) for method in methods.values()] for title, cell in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    rows = [
        {"label": label(row), "color": color_name(row), "cells": [column[i] or "–" for column in cells.values()]}
        for i, row in enumerate(methods)
        if any(column[i] for column in cells.values())
    ]
    return {"columns": list(cells), "rows": rows} if rows else None


def _interval(method: dict[str, Any]) -> str:
    return " to ".join(map(_number, method["iqm_interval"])) if "iqm_interval" in method else ""


def _difference(method: dict[str, Any]) -> str:
    found = method.get("difference")
    return "+"[: found["mean"] > 0] + " ± ".join(_mean(found)) if found else ""


def _mean_of(key: str) -> Cell:
    return lambda method: " ± ".join(_mean(method[key])) if key in method else ""


def _times(key: str) -> Cell:
    """Return a cell with the median and the 95th percentile."""
    return lambda method: f"{_number(method[key]['median'])} / {_number(method[key]['p95'])}" if key in method else ""


RETURNS: dict[str, Cell] = {
    "episodes": lambda method: str(len(method["returns"])),
    "mean": lambda method: " ± ".join(_mean(method)),
    "IQM": lambda method: _number(method["iqm"]) if "iqm" in method else "",
    "95 % interval": _interval,
    "minus {reference}": _difference,
}
SCORES: dict[str, Cell] = {
    "normalised score": _mean_of("score"),
    "cost": _mean_of("cost"),
    "cost / limit": lambda method: _number(method["normalised_cost"][limit_key(method)]) if limit_key(method) else "",
    "within limit": lambda method: (
        f"{method['share_within_limit'][limit_key(method)]:.0%}" if limit_key(method) else ""
    ),
}
TIMES: dict[str, Cell] = {
    "plan ms, batch": _times("plan_ms"),
    "plan ms, one": _times("plan_ms_single"),
    "action ms, one": _times("action_ms_single"),
    "fallbacks": lambda method: str(method["fallbacks"]) if "fallbacks" in method else "",
}


def _feasibility(methods: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figure and the table of the distances between planned and real latents; None without distances."""
    series = {
        row: {int(steps): distance for steps, distance in method["feasibility"].items()}
        for row, method in methods.items()
        if method.get("feasibility")
    }
    if not series:
        return None
    steps = sorted({k for points in series.values() for k in points})
    rows = [
        {
            "label": label(row),
            "color": color_name(row),
            "cells": [" ±\u00a0".join(_mean(points[k])) if k in points else "–" for k in steps],
        }
        for row, points in series.items()
    ]
    if {"mpdiffuser", "planner"} <= set(series):
        both, alone = series["mpdiffuser"], series["planner"]
        comparable = [k in both and k in alone and both[k]["mean"] > 0 for k in steps]
        cells = [f"{alone[k]['mean'] / both[k]['mean']:.2f} ×" if fine else "–" for k, fine in zip(steps, comparable)]
        rows.append({"label": f"{label('planner')}, relative to MPDiffuser", "color": "", "cells": cells})
    drawn = {
        row: (label(row), {k: (v["mean"], v.get("standard_error", 0.0)) for k, v in points.items()})
        for row, points in series.items()
    }
    return {"figure": figures.feasibility_figure(drawn), "steps": steps, "rows": rows}


def _curves(folder: Path, stages: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield a figure for each <model>/log.jsonl with a loss, in the order of the stages, then by name."""
    logs = {file.parent.name: file for file in sorted(folder.glob("*/log.jsonl"))}
    for model in dict.fromkeys([*(stage for stage in stages if stage in logs), *logs]):
        lines = read_log(logs[model])
        training, validation = (losses(lines, key) for key in ("loss", "validation_loss"))
        if len(training) or len(validation):
            yield {"label": model.replace("_", " "), "figure": figures.curve_figure(model, training, validation)}


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a log. An incomplete last line, of a run that was killed or still runs, is skipped."""
    lines = []
    texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
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


def losses(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    """Return steps and finite losses, (n, 2)."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(1)]


def _video(file: Path) -> str | None:
    """Return the video as a data: URL; None if the file is missing."""
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else None


def _stages(stages: dict[str, float]) -> dict[str, Any]:
    longest = max(stages.values(), default=0.0) or 1.0
    rows = [
        {"name": name, "time": _duration(seconds), "percent": round(100 * seconds / longest, 1)}
        for name, seconds in stages.items()
    ]
    return {"stages": rows, "stages_total": _duration(sum(stages.values()))}


def _settings(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the evaluation's settings and the checksums of the data and the pipeline, as (name, value)."""
    yield from _flatten(metrics.get("settings", {}))
    for key, name in (("data", "checksum of the data"), ("pipeline", "checksum of the pipeline")):
        if key in metrics:
            yield name, str(metrics[key])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as (dotted name, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _share(row: str, methods: dict[str, Any]) -> str:
    """Return the mean return relative to the expert's; "" unless the expert's is positive."""
    expert = methods.get("expert", {}).get("mean", 0.0)
    return f"{100 * methods[row]['mean'] / expert:.0f} %" if expert > 0 else ""


def _number(value: float) -> str:
    """Format a number with three or four significant digits, with an exponent only below 1e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{max(0, min(6, (3 if size >= 100 else 2) - math.floor(math.log10(size))))}f}"


def _mean(values: dict[str, Any]) -> tuple[str, ...]:
    """Format the mean and, if known, its standard error, which has two significant digits, with equal decimals."""
    error = values.get("standard_error")
    if error is None:
        return (_number(values["mean"]),)
    if error < 1e-6:
        return _number(values["mean"]), _number(error)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{values['mean']:.{decimals}f}", f"{error:.{decimals}f}"


def _decimals(methods: Iterable[dict[str, Any]]) -> int:
    """Return the number of decimals for a group of numbers: two significant digits of the largest standard error."""
    error = max(method.get("standard_error", 0.0) for method in methods)
    return max(0, min(6, 1 - math.floor(math.log10(error)))) if error >= 1e-6 else 2


def _rounded(values: dict[str, Any], decimals: int) -> tuple[str, ...]:
    """Format the mean and, if known, its standard error with these decimals; an error that rounds to 0 as "<0.1"."""
    mean = f"{values['mean']:.{decimals}f}"
    if "standard_error" not in values:
        return (mean,)
    least, error = 10.0**-decimals, values["standard_error"]
    return mean, f"{error:.{decimals}f}" if error == 0 or error >= least / 2 else f"<{least:.{decimals}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@quiet_pipes()
def main() -> None:
    """Write the report of the folder on the command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description="Write a run's report.html.")
    parser.add_argument("folder", type=Path, help="the run's folder, which holds metrics.json")
    try:
        print(write_report(parser.parse_args().folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
