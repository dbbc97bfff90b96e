"""Why the queue turns a request away, or has no answer. The gateway maps each to one HTTP status."""

from __future__ import annotations


class QueueFull(Exception):
    """429: no place by items or bytes. `retry_after`: seconds until the bound that refused is free, by the work that is unfinished."""

    def __init__(self, retry_after: int, detail: str = "the queue is full") -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class ClientShare(QueueFull):
    """429: one client has its share, while there may be places for others."""


class KeyShare(QueueFull):
    """429: the jobs of one API key are as many as it may have at once."""


FOREIGN = "WRONGTYPE"
"""The first word of errors about a key of ours that somebody else has written over."""


class RedisAway(Exception):
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
    def of_a_key(self) -> bool:
        """Whether it is about one key, which holds what we cannot read: other keys may be usable."""
        return self.refusal.startswith(FOREIGN)

    @staticmethod
    def unreadable(key: str, why: Exception) -> RedisAway:
        """The error of a key that holds what no process of ours wrote."""
        said = f"{FOREIGN} {key} cannot be read: {why}"
        return RedisAway(f"the queue's Redis refuses to work: {said}", said)


class DeadlineExceeded(Exception):
    """504: the deadline had passed before the jobs were queued."""


class RecordLost(Exception):
    """Another Redis took this job, and has lost it."""


class KeyTaken(Exception):
    """The idempotency key belongs to another request."""


class ResultsFull(Exception):
    """Results that are kept and reserved take all the bytes that there are."""


class NeverFits(Exception):
    """413: alone, a job is more than all asynchronous jobs together may hold, or a request more than its API key or all work of priority
    low may have. Says of what, and how much that is."""
