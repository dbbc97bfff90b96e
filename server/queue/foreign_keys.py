"""What others have put under our names: with a key of another type there no script that uses it works. It is set aside, not deleted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.queue.errors import RedisAway

log = logging.getLogger(__name__)

TYPES = {
    "queues": "set",
    "streams": "set",
    "workers": "set",
    "gateways": "set",
    "queue:bytes": "string",
    "queue:work": "string",
    "queue:jobs": "set",
    "queue:owners": "hash",
    "repository": "hash",
    "repository:revision": "string",
    "restarts": "hash",
    "janitor": "string",
    "dead": "stream",
    "epoch": "string",
    "records:open": "zset",
    "records:kept": "zset",
    "records:totals": "hash",
    "records:ended": "hash",
    "records:items": "hash",
    "records:sweep": "string",
    "stats:uncounted": "list",
}
"""The names that do not depend on jobs, gateways or bundles. `set_aside.lua` finds the others."""
ARGUMENTS = [word for row in TYPES.items() for word in row]


def is_reason(away: RedisAway) -> bool:
    """Whether Redis seems away because of such a key."""
    return away.refusal.startswith("WRONGTYPE")


def tell(freed: Sequence[bytes]) -> None:
    """Log what the script `set_aside` answered."""
    for name, aside in zip(freed[::2], freed[1::2], strict=True):
        log.error("somebody else's data lay under %s, a name of this service: it is now under %s", name.decode(), aside.decode())
