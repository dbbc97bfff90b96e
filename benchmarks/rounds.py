"""Figures that are measured in rounds: their values, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class RoundsFigure:
    """A ratio, or seconds, of every round."""

    name: str
    aim: str
    values: list[float]
    details: dict[str, list[float]]
    """Parts of the figure by name: the prediction of arithmetic, and what was divided."""


@dataclass
class FigureRounds:
    """The values of a figure's rounds so far."""

    values: list[float] = field(default_factory=list)
    details: dict[str, list[float]] = field(default_factory=dict)

    def note(self, value: float, **details: float) -> None:
        self.values.append(value)
        for name, detail in details.items():
            self.details.setdefault(name, []).append(detail)

    def figure(self, name: str, aim: str) -> RoundsFigure:
        return RoundsFigure(name, aim, self.values, self.details)


def show(figures: Sequence[RoundsFigure], console: Console) -> None:
    table = Table("figure", "median", "min", "max", "aim", "medians")
    for figure in figures:
        details = ", ".join(f"{name} {statistics.median(values):.3g}" for name, values in figure.details.items())
        spread = (statistics.median(figure.values), min(figure.values), max(figure.values))
        table.add_row(figure.name, *(f"{value:.3f}" for value in spread), figure.aim, details)
    console.print(table)
