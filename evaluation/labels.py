"""Labels, colours and order of the rows of a comparison, from the registry of methods.

A row is named after its method, or "NAME within LIMIT" where the method was told a cost limit. Rows of other programs,
whose names are not in the registry, come last, under their own names and in a neutral colour.
"""

from collections.abc import Iterable, Iterator

from mpdiffuser.methods import METHODS

NEUTRAL = "faint"


def method_of(row: str) -> str:
    """The method's name in a row's: mpdiffuser of "mpdiffuser within 20"."""
    return row.partition(" within ")[0]


def label(row: str) -> str:
    """The method's label, with the cost limit if there is one."""
    name, within, limit = row.partition(" within ")
    return METHODS[name].label + within + limit if name in METHODS else row


def short_label(row: str) -> str:
    """The label without what stands in brackets."""
    name, within, limit = row.partition(" within ")
    return METHODS[name].label.partition(" (")[0] + within + limit if name in METHODS else row


def color_name(row: str) -> str:
    """The name of the row's colour, which is also that of its CSS variable."""
    name = method_of(row)
    return name if name in METHODS else NEUTRAL


def in_order(rows: Iterable[str]) -> list[str]:
    """The registry's order; rows of one method stay in the order in which they come."""
    places = {name: place for place, name in enumerate(METHODS)}
    return sorted(rows, key=lambda row: places.get(method_of(row), len(places)))


def colors() -> dict[str, tuple[str, str]]:
    """Each method's colour on light and on dark pages, as hex."""
    return {name: method.color for name, method in METHODS.items()}


def descriptions(rows: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Label and summary of each method that has a row."""
    for name in dict.fromkeys(map(method_of, in_order(rows))):
        if name in METHODS:
            yield METHODS[name].label, METHODS[name].summary
