"""Labels, colours and order of the rows of a comparison, from the registry of methods.

The name of a row is the method's name, or "NAME within LIMIT" for a method with a cost limit. A row of another program
is not in the registry. It comes last, with its own name and a neutral colour.
"""

from collections.abc import Iterable, Iterator

from mpdiffuser.methods import METHODS
from mpdiffuser.methods.planner import PlannerOnly

NEUTRAL = "faint"


def method_of(row: str) -> str:
    """Return the method's name of a row, such as mpdiffuser of "mpdiffuser within 20"."""
    return row.partition(" within ")[0]


def label(row: str) -> str:
    """Return the method's label, with the cost limit if the row has one."""
    name, within, limit = row.partition(" within ")
    return METHODS[name].label + within + limit if name in METHODS else row


def short_label(row: str) -> str:
    """Return the label without the part in brackets."""
    name, within, limit = row.partition(" within ")
    return METHODS[name].label.partition(" (")[0] + within + limit if name in METHODS else row


def color_name(row: str) -> str:
    """Return the name of the row's colour, which is also the name of its CSS variable."""
    name = method_of(row)
    return name if name in METHODS else NEUTRAL


def in_order(rows: Iterable[str]) -> list[str]:
    """Sort rows in the registry's order. Rows of the same method keep their order."""
    places = {name: place for place, name in enumerate(METHODS)}
    return sorted(rows, key=lambda row: places.get(method_of(row), len(places)))


def reference_of(rows: Iterable[str]) -> str:
    """Return the row that the others are compared with: planner only, if it is there, otherwise the first."""
    found = list(rows)
    return PlannerOnly.name if PlannerOnly.name in found else found[0]


def colors() -> dict[str, tuple[str, str]]:
    """Return method -> hex colours on light and on dark pages."""
    return {name: method.color for name, method in METHODS.items()}


def descriptions(rows: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (label, summary) of each method that has a row."""
    for name in dict.fromkeys(map(method_of, in_order(rows))):
        if name in METHODS:
            yield METHODS[name].label, METHODS[name].summary
