"""Why the queue turns a request away, or has no answer. The gateway maps each to one HTTP status."""

from __future__ import annotations

import math

from server.queue.script import Outcome


class Refused(Exception):
    """429 or 413: the queue has no capacity. The outcome holds the usage and the exceeded bound."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.reason = outcome.reason.decode()
        """A word of `parts/admission.lua`, or `memory`: Redis has none left."""
        self.outcome = outcome

    @property
    def retry_after(self) -> int:
        """Seconds until the exceeded bound is free, estimated from the unfinished work."""
        return max(1, math.ceil(self.outcome.wait_ms / 1000))


FOREIGN = "WRONGTYPE"
"""First word of errors about a key that another program has written over."""


class RedisUnavailable(Exception):
    """503: Redis does not answer or refuses to write, or did so for longer than `redis_grace`."""

    retry_after = 5

    def __init__(self, detail: str = "the queue's Redis does not answer", refusal: str = "", cause: str = "") -> None:
        super().__init__(f"{detail}: {cause}" if cause else detail)
        self.detail = detail
        """The message for clients."""
        self.refusal = refusal
        """Redis' own words, if it answers but refuses to work; empty if it does not answer."""
        self.cause = cause
        """redis-py's words, for the log alone: they name the address."""

    @property
    def is_about_key(self) -> bool:
        """Whether it is about one key, which holds what we cannot read: other keys may be usable."""
        return self.refusal.startswith(FOREIGN)

    @staticmethod
    def unreadable(key: str, reason: Exception) -> RedisUnavailable:
        """Return the error of a key that holds what no process of Opsin wrote."""
        refusal = f"{FOREIGN} {key} cannot be read: {reason}"
        return RedisUnavailable(f"the queue's Redis refuses to work: {refusal}", refusal)


class DeadlineExceeded(Exception):
    """504: the deadline had passed before the jobs were queued."""


class RecordLost(Exception):
    """Another Redis took this job, and has lost it."""


class IdempotencyConflict(Exception):
    """The idempotency key belongs to another request."""
