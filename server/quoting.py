"""Clients' values as errors repeat them: cut short, since nobody reads kilobytes of their own words."""

from __future__ import annotations

QUOTED = 100
"""Characters of a value that an error repeats."""


def quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}…"
