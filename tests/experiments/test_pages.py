"""Tables in Markdown, and the first line of a page."""

import datetime
from pathlib import Path

from experiments.pages import DOCS, parser, row, run_options, table, written_by
from mpdiffuser.machine import available_cores, cpu_name


def test_tables() -> None:
    assert row(["a", 1, ""]) == "| a | 1 |  |\n"
    assert table(["x", "y"], [(1, 2), (3, 4)]) == "| x | y |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"


def test_the_options_of_experiments_that_train() -> None:
    options = parser("text")
    run_options(options, "maze", "train_state.py", [0])
    usual = options.parse_args([])
    assert (usual.seeds, usual.folder, usual.page, usual.set) == ([0], Path("results/maze"), DOCS / "maze.md", [])
    given = options.parse_args(["--seeds", "3", "4", "--folder", "a", "--page", "b.md", "--set", "horizon=8", "seed=1"])
    assert (given.seeds, given.folder, given.page) == ([3, 4], Path("a"), Path("b.md"))
    assert given.set == ["horizon=8", "seed=1"]


def test_the_first_line() -> None:
    today, cores = datetime.date.today(), available_cores()
    start = f"Written by `python -m experiments.maze` on {today}"
    assert written_by("maze") == f"{start}, {cpu_name()}, {cores} shared cores"
    assert written_by("maze", "cores", "A and B") == f"{start}; measured on A and B, {cores} cores"
