"""Clients whose work takes long, so that more of it is to be expected."""

from __future__ import annotations

import math
import time

REMEMBERED = 60.0
"""Seconds after its latest long call during which a client counts as heavy."""


class HeavyClients:
    """For one event loop."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        """When each client had its latest long call (`time.monotonic`)."""

    def add(self, client: str) -> None:
        """It has a long call, or had one just now."""
        self._latest = {one: when for one, when in self._latest.items() if one in self} | {client: time.monotonic()}

    def __contains__(self, client: str) -> bool:
        return time.monotonic() - self._latest.get(client, -math.inf) < REMEMBERED
