"""Clients whose work takes long, so that more of it is to be expected."""

from __future__ import annotations

import time

REMEMBERED = 10.0
"""Seconds for each of a CPU that a call took, during which its client counts as heavy after it."""
LONGEST = 60.0
"""Of these at most."""


class HeavyClients:
    """For one event loop."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        """When each client ceases to be heavy (`time.monotonic`)."""

    def add(self, client: str, seconds: float) -> None:
        """It has a long call, or had one just now, that took so many seconds of a CPU."""
        until = max(self._until.get(client, 0.0), time.monotonic() + min(LONGEST, REMEMBERED * seconds))
        self._until = {one: when for one, when in self._until.items() if one in self} | {client: until}

    def __contains__(self, client: str) -> bool:
        return time.monotonic() < self._until.get(client, 0.0)
