"""Long work of one client leaves CPUs to the others: little of it runs at once, and while others ask and no CPU is idle, it rests for
longer than it ran. Priorities of threads are no way: one that holds the interpreter's lock, or memory, holds up everybody."""

from __future__ import annotations

import math
import time
from pathlib import Path

REST = 3
"""Seconds of rest for each of a CPU that a call took: a client's long work then has a quarter of a CPU."""
LONG = 0.5
"""Seconds of a CPU that a call takes at least to count as long."""
MOST = 30.0
"""Seconds of rest at most."""
REMEMBERED = 10.0
"""Seconds after its end for which a long call lets more of them be expected of the same client."""
PRESENT = 1.0
"""Seconds for which a request for work tells that its client is there."""
IDLE = 0.1
"""Share of the CPUs' time that is left over where nobody needs to rest."""
COUNTERS = Path("/proc/stat")


class Courtesy:
    """For one event loop."""

    def __init__(self) -> None:
        self._came: dict[str, float] = {}
        """When a client's latest request for work came, in the order of these times."""
        self._long: dict[str, float] = {}
        """When a client's latest long call ended."""
        self._times = _cpu_times()

    def came(self, client: str) -> None:
        now = time.monotonic()
        self._came.pop(client, None)
        self._came[client] = now
        while now - self._came[oldest := next(iter(self._came))] > PRESENT:
            del self._came[oldest]

    def rest(self, client: str, began: float, spent: float) -> float:
        """Seconds for which the client's next call should wait after one that began then (`time.monotonic`) and took so much of a CPU."""
        if spent < LONG:
            return 0.0
        self._long = {one: ended for one, ended in self._long.items() if self.is_long(one)} | {client: time.monotonic()}
        before, self._times = self._times, _cpu_times()
        passed, idle = (now - then for now, then in zip(self._times, before, strict=True))
        others = any(one != client and when > began - PRESENT for one, when in self._came.items())
        return min(MOST, REST * spent) if others and idle <= IDLE * passed else 0.0

    def is_long(self, client: str) -> bool:
        """Whether the client had long work a moment ago, so that more of it is to be expected."""
        return time.monotonic() - self._long.get(client, -math.inf) < REMEMBERED


def _cpu_times() -> tuple[int, int]:
    """All that has passed on all CPUs, and what of it they were idle; nothing, where the system does not tell."""
    try:
        _, *counted = COUNTERS.open(encoding="ascii").readline().split()
    except OSError:
        return 0, 0
    times = [int(one) for one in counted[:8]]
    return sum(times), times[3] + times[4]
