"""Detail of detection: the size that frames are scaled to before the detector sees them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Detail = Literal["fast", "standard", "high"]
SCALES: Mapping[Detail, float] = {"fast": 1.0, "standard": 1.4, "high": 2.0}
"""Factor on the detector's default long side: 320, 448 and 640 pixels for MoveNet."""


def long_side(detail: Detail, default: int, multiple: int) -> int:
    """Return the long side in pixels, a multiple of `multiple`. default: long side in the detector's bundle."""
    return max(multiple, round(SCALES[detail] * default / multiple) * multiple)


def cost(detail: Detail) -> float:
    """Return the work for one frame in units of `fast`, proportional to its pixels."""
    return SCALES[detail] ** 2


def rows(detail: Detail, usual: Detail, usual_rows: int) -> int:
    """Return the number of rows of a step that takes as long as `usual_rows` at `usual`; at least 1."""
    return max(1, round(usual_rows * cost(usual) / cost(detail)))
