"""How often a supervisor has restarted a process, told to the process itself through its environment."""

from __future__ import annotations

import os

VARIABLE = "OPSIN_RESTARTS"


def restarts() -> int:
    """Of this process; 0 without a supervisor."""
    return int(os.environ.get(VARIABLE, 0))
