"""What has happened lately, step by step, over all gateways and workers: told by each of them, kept in Redis, read by whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.queue import keys, lua
from server.queue.job import Priority
from server.queue.presence import Presence
from server.queue.rows import StreamLoad

STEP_S = 5
"""As `parts/history.lua` says."""
STEPS = 15 * 60 // STEP_S
MOST_LETTERS = 20


@dataclass(frozen=True)
class Waiting:
    """Unfinished jobs of one bundle and priority; `running` ones are in a worker's hands."""

    bundle: str
    priority: Priority
    waiting: int
    running: int
    oldest_s: float


@dataclass(frozen=True)
class Letter:
    """A job that was given up."""

    time_ms: int
    bundle: str
    reason: str


@dataclass(frozen=True)
class Lately:
    """The queue's view of the service at one moment."""

    now_ms: int
    gateways: int
    """Those that live."""
    queue: list[Waiting]
    steps: list[Mapping[str, int]]
    """What was counted in each complete step, the oldest first: STEPS of them."""
    letters: list[Letter]
    """The latest first."""


class History:
    """Raises RedisAway at once while Redis does not answer."""

    def __init__(self, client: Any, presence: Presence) -> None:
        self._presence = presence
        self._script = {name: client.register_script(lua.source(name)) for name in ("tell", "status")}

    async def tell(self, counts: Mapping[str, int]) -> None:
        """Add what was counted to the step that runs now."""
        flat = [word for pair in counts.items() for word in pair]
        await self._presence.ask(lambda: self._script["tell"](args=flat))

    async def read(self) -> Lately:
        now_ms, gateways, streams, held, history, letters = await self._presence.ask(
            lambda: self._script["status"](args=[STEPS, MOST_LETTERS])
        )
        first = now_ms // (STEP_S * 1000) - STEPS
        counted = {step - first: _counts(flat) for step, flat in history}
        return Lately(
            now_ms,
            gateways,
            _queue(now_ms, [StreamLoad._make(row) for row in streams], held),
            [counted.get(step, {}) for step in range(STEPS)],
            [_letter(*(field.decode(errors="replace") for field in letter)) for letter in letters],
        )


def _counts(flat: list[bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}


def _queue(now_ms: int, streams: list[StreamLoad], held: list[int]) -> list[Waiting]:
    """Of streams that hold jobs; several contents of a bundle, and what was handed back, count together."""
    rows: dict[tuple[str, Priority], Waiting] = {}
    for stream, running in zip(streams, held, strict=True):
        try:
            name = keys.StreamName.of(stream.stream.decode())
        except ValueError:  # anybody may have added to the set of queues
            continue
        if stream.length:
            key = name.bundle, name.priority
            known = rows.get(key, Waiting(*key, 0, 0, 0.0))
            age = max(0.0, (now_ms - stream.oldest_ms) / 1000)
            waiting = known.waiting + max(0, stream.length - running)
            rows[key] = Waiting(*key, waiting, known.running + running, max(known.oldest_s, age))
    return [rows[key] for key in sorted(rows)]


def _letter(entry: str, stream: str, reason: str) -> Letter:
    try:
        bundle = keys.StreamName.of(stream).bundle
    except ValueError:
        bundle = ""
    return Letter(int(entry.partition("-")[0]), bundle, reason)
