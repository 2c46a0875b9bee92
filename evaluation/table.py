"""The ASCII table of a comparison, for terminals."""

from collections.abc import Callable, Sequence
from typing import Any

from evaluation.labels import reference_of
from evaluation.metrics_schema import explanations, limit_key, with_differences


def table(metrics: dict[str, Any]) -> str:
    """Return one line for each method with the cells of `COLUMNS`, and sentences that explain the numbers of a suite.

    Each column has a fixed width and is aligned to the right. An empty cell is "-". The table has the columns of
    `SUITE` if a method has a score or a cost.
    """
    reference = reference_of(metrics["methods"])
    methods = with_differences(metrics["methods"], reference)
    suite = any("score" in method or "cost" in method for method in methods.values())
    cells = COLUMNS | (SUITE if suite else {})
    titles = [title.format(reference=reference) for title in cells]
    rows = [[row, *(cell(method) for cell in cells.values())] for row, method in methods.items()]
    return "\n".join([aligned([["method", *titles], *rows]), *explanations(metrics)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return lines whose first column is aligned to the left and whose others are to the right; "" is shown as "-"."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, *cells in rows:
        lines.append(name.ljust(widths[0]) + "".join(f"  {c or '-':>{width}}" for c, width in zip(cells, widths[1:])))
    return "\n".join(lines)


def _interval(method: dict[str, Any]) -> str:
    low, high = method["iqm_interval"]
    return f"[{low:.1f}, {high:.1f}]"


def _difference(method: dict[str, Any]) -> str:
    found = method.get("difference")
    return f"{found['mean']:+.1f} +-{found['standard_error']:.1f}" if found else ""


def _median(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda method: f"{method[key]['median']:.1f}" if key in method else ""


def _error(method: dict[str, Any]) -> str:
    return f"{method['feasibility']['1']['mean']:.4f}" if "1" in method.get("feasibility", {}) else ""


# title -> cell of a method. minus: paired difference to that row, +- its standard error. plan ms: milliseconds of a
# plan for all environments; one: of a plan for one environment; action: from an observation to its action for one
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "return": lambda method: f"{method['mean']:.1f}",
    "+-se": lambda method: f"{method['standard_error']:.1f}",
    "IQM": lambda method: f"{method['iqm']:.1f}",
    "95 % interval": _interval,
    "minus {reference}": _difference,
    "plan ms": _median("plan_ms"),
    "one": _median("plan_ms_single"),
    "action": _median("action_ms_single"),
    "1-step error": _error,
}
SUITE: dict[str, Callable[[dict[str, Any]], str]] = {
    "score": lambda method: f"{method['score']['mean']:.3f}" if "score" in method else "",
    "cost": lambda method: f"{method['cost']['mean']:.1f}" if "cost" in method else "",
    "within": lambda method: f"{method['share_within_limit'][limit_key(method)]:.0%}" if limit_key(method) else "",
}
