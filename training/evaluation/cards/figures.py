"""Figures and tables of cards, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def figure(measured: Mapping[str, float], digits: int, *, unit: float = 1, errors: int = 2, sign: str = "") -> str:
    """Format a mean with this number of its standard errors. `sign` is "+" for differences."""
    return f"{unit * measured['value']:{sign}.{digits}f} ± {errors * unit * measured['standard_error']:.{digits}f}"


def share(measured: Mapping[str, float], *, errors: int = 2, sign: str = "") -> str:
    """Format a fraction in percent."""
    return f"{figure(measured, 1, unit=100, errors=errors, sign=sign)} %"


def verdict(difference: Mapping[str, float], digits: int, *, lower_is_better: bool) -> str:
    """Judge "this network minus the other" by two standard errors, and format the difference."""
    value, error = difference["value"], difference["standard_error"]
    word = "no difference" if abs(value) <= 2 * error else "better" if (value < 0) == lower_is_better else "worse"
    return f"{word} ({figure(difference, digits, sign='+')})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table, and an empty line."""
    yield row(head)
    yield f"|{'---|' * len(head)}"
    yield from map(row, rows)
    yield ""


def row(cells: Iterable[object]) -> str:
    return "|" + "".join(f" {cell} |" if str(cell) else " |" for cell in cells)


def packages(data: Mapping[str, Any]) -> str:
    """Name and version of each. data: of the provenance."""
    return ", ".join(f"{package['name']} {package['version']}" for package in data["packages"])


def creators(data: Mapping[str, Any], line_format: str) -> Iterator[str]:
    """Yield a line for each licence in the `data` of a provenance."""
    for license, names in data["creators"].items():
        yield f"{line_format.format(license=license)} by {', '.join(names)}."
