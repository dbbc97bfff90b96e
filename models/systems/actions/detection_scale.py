"""How closely a pipeline looks for people: what frames are scaled to before its detector sees them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Detail = Literal["fast", "standard", "high"]
SCALES: Mapping[Detail, float] = {"fast": 1.0, "standard": 1.4, "high": 2.0}
"""Times the detector's own long side: 320, 448 and 640 pixels of MoveNet."""


def long_side(detail: Detail, own: int, multiple: int) -> int:
    """Pixels, a multiple of `multiple`. own: long side that the detector's bundle names."""
    return max(multiple, round(SCALES[detail] * own / multiple) * multiple)


def cost(detail: Detail) -> float:
    """Work for one frame in units of `fast`: proportional to its pixels."""
    return SCALES[detail] ** 2


def rows(detail: Detail, usual: Detail, usual_rows: int) -> int:
    """Rows of a step that takes as long as one of `usual_rows` at `usual`; at least 1."""
    return max(1, round(usual_rows * cost(usual) / cost(detail)))
