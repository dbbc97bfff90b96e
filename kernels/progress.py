"""Time of the latest progress of long compilations, for the thread that ends a worker without progress."""

from __future__ import annotations

import time

_latest = float("-inf")


def note() -> None:
    global _latest
    _latest = time.monotonic()


def silence() -> float:
    """Return the seconds since the latest `note`, inf without one."""
    return time.monotonic() - _latest
