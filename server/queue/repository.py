"""What operators want loaded: a hash in Redis that everybody reads, and a counter of its changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.bundle import NAME_PATTERN
from server.queue.rows import whole

STATES = frozenset({"loaded", "unloaded"})


@dataclass(frozen=True)
class Repository:
    states: Mapping[str, str]
    """Bundle name → `loaded` | `unloaded`; a name that is absent is loaded."""
    revision: int
    """The number of the latest change that `states` shows, or of an earlier one."""

    @staticmethod
    def of(revision: bytes, flat: Sequence[bytes]) -> Repository:
        """From what repository.lua answers."""
        return Repository(states_of(flat), whole(revision))


def states_of(flat: Sequence[bytes]) -> dict[str, str]:
    """From `[name, state, name, state, …]`. Anybody may have written to that hash: what is no bundle's name or no state is left out."""
    texts = [item.decode(errors="replace") for item in flat]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return {name: state for name, state in pairs if NAME_PATTERN.fullmatch(name) and state in STATES}
