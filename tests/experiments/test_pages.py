"""Tables in Markdown, and the first line of a page."""

import datetime

from experiments.pages import row, table, written_by
from mpdiffuser.machine import available_cores, cpu_name


def test_tables() -> None:
    assert row(["a", 1, ""]) == "| a | 1 |  |\n"
    assert table(["x", "y"], [(1, 2), (3, 4)]) == "| x | y |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"


def test_the_first_line() -> None:
    today, cores = datetime.date.today(), available_cores()
    start = f"Written by `python -m experiments.maze` on {today}"
    assert written_by("maze") == f"{start}, {cpu_name()}, {cores} shared cores"
    assert written_by("maze", "cores", "A and B") == f"{start}; measured on A and B, {cores} cores"
