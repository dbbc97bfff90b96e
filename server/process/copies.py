"""What the supervisor and the template, whose copies workers are, say to each other over a pair of sockets: a JSON message each."""

from __future__ import annotations

import msgspec

MOST_BYTES = 1024**2
"""Of a message: an environment is some kilobytes."""


class Order(msgspec.Struct, frozen=True):
    """Become a worker."""

    command: list[str]
    """What `ps` shall show."""
    environment: dict[str, str]
    """The whole of it."""


class Told(msgspec.Struct, frozen=True):
    """What the template says. Without a pid: that it stands."""

    pid: int = 0
    """Of a copy."""
    status: int | None = None
    """Set where the copy has ended: its exit code, or the negative of the signal that ended it, as in `subprocess`."""
    problem: str = ""
    """Why there is no copy."""
