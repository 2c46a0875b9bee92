"""The terminal's table: columns that stay in their places."""

import re
from typing import Any

import pytest

from evaluation.statistics import summary
from evaluation.table import table

TIMES = {
    "plan_ms": {"median": 1270.25, "p95": 359.5, "batch": 20},
    "plan_ms_single": {"median": 38.64, "p95": 54.1, "batch": 1},
    "action_ms_single": {"median": 41.0, "p95": 60.0, "batch": 1},
    "feasibility": {"1": {"mean": 0.01234, "standard_error": 0.001}},
}
SUITE = {
    "score": {"mean": 0.5},
    "cost": {"mean": 18.5},
    "share_within_limit": {"20": 0.85, "40": 1.0},
    "limit": None,
}


def method(returns: list[float], **more: Any) -> dict[str, Any]:
    return {**summary(returns), "returns": returns, **more}


PLAIN = {
    "random": method([-1234567.0, 12.0, 8.0]),
    "mpdiffuser": method([700.0, 720.0, 680.0], **TIMES),
    "a_method_of_someone_else_with_a_long_name": method([1.0], plan_ms_single=TIMES["plan_ms_single"]),
    "expert": method([0.0, 0.0]),
}
COSTS = {
    "cloning": method([300.0, 1.0], **SUITE),
    "cloning within 20": method([300.0, 1.0], **SUITE | {"limit": 20.0}),
    "mpdiffuser within 40": method([300.0, 2.0], **TIMES, **SUITE | {"limit": 40.0}),
    "expert": method([3.0, 4.0]),
}


def columns(text: str, count: int) -> tuple[list[list[str]], list[list[int]]]:
    """Cells and the places where they end, line by line of a head and `count` rows; two spaces part the cells."""
    lines = text.splitlines()[: count + 1]
    parts = [list(re.finditer(r"\S+(?: \S+)*", line)) for line in lines]
    return [[part.group() for part in line] for line in parts], [[part.end() for part in line[1:]] for line in parts]


@pytest.mark.parametrize("methods", [PLAIN, COSTS, {"random": method([1.0])}])
def test_columns_do_not_shift(methods: dict[str, Any]) -> None:
    cells, ends = columns(table({"methods": methods}), len(methods))
    assert [line[0] for line in cells] == ["method", *methods]
    assert len(cells[0]) == (13 if methods is COSTS else 10)
    assert all(line == ends[0] for line in ends)


def test_what_is_in_the_cells() -> None:
    cells, _ = columns(table({"methods": PLAIN}), len(PLAIN))
    titles = ["return", "+-se", "IQM", "95 % interval", "minus random", "plan ms", "one", "action", "1-step error"]
    assert cells[0] == ["method", *titles]
    assert cells[2][1:] == [
        "700.0",
        "11.5",
        "700.0",
        cells[2][4],
        "+412215.7 +-411525.7",
        "1270.2",
        "38.6",
        "41.0",
        "0.0123",
    ]
    assert cells[3][1:] == ["1.0", "0.0", "1.0", "[1.0, 1.0]", "-", "-", "38.6", "-", "-"]
    cells, _ = columns(table({"methods": COSTS}), len(COSTS))
    assert cells[0][-3:] == ["score", "cost", "within"]
    assert [line[-3:] for line in cells[1:]] == [
        ["0.500", "18.5", "-"],
        ["0.500", "18.5", "85%"],
        ["0.500", "18.5", "100%"],
        ["-", "-", "-"],
    ]


def test_differences_are_paired_and_within_the_same_limit() -> None:
    rows = {
        "cloning": [1.0, 2.0],
        "planner": [2.0, 4.0],
        "planner within 20": [5.0, 5.0],
        "cloning within 20": [6.0, 8.0],
    }
    methods = {row: method(returns, **SUITE) for row, returns in rows.items()}
    cells, _ = columns(table({"methods": methods}), len(methods))
    column = cells[0].index("minus planner")
    assert [line[column] for line in cells[1:]] == ["-1.5 +-0.5", "-", "-", "+2.0 +-1.0"]


def test_it_is_ascii_and_explains_a_suite() -> None:
    score = {"mean": 71.5, "low": -20.25, "high": 3234.5}
    methods = {"mpdiffuser": method([3.0], score=score), "mpdiffuser within 20": COSTS["cloning within 20"]}
    metrics = {"suite": "d4rl", "stand_in": True, "settings": {"safety_probability": 0.9}, "methods": methods}
    text = table(metrics)
    assert text.isascii()
    assert text.splitlines()[3:] == [
        "The data are a stand-in for the suite's: no number here is a D4RL result.",
        "Normalised score: 100 (return - low) / (high - low), low -20.25, high 3234.5.",
        "Target: 90% of the episodes within the method's cost limit.",
    ]


@pytest.mark.parametrize(("used", "shown"), [(3, True), (8, False)])
def test_it_says_how_the_number_of_levels_was_chosen(used: int, shown: bool) -> None:
    """Unless an option overrode the choice."""
    record = {"levels": 3, "windows": 1024, "episodes": 10, "errors": {"1": 0.0125, "3": 0.01}}
    metrics = {"methods": {"mpdiffuser": method([3.0], levels=used)}, "levels": {"planner": record}}
    words = (
        "planner: 3 noise levels, chosen by the error of the executed action on 1024 held-out windows of 10 episodes: "
        "0.0125 with 1, 0.01 with 3."
    )
    assert (words in table(metrics).splitlines()) == shown
