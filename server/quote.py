"""Clients' values as error messages repeat them: cut short."""

from __future__ import annotations

MAX_QUOTED_CHARS = 100
"""Maximum number of characters of a value in an error."""


def quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…"
