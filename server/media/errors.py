"""What is wrong with a part that a request brought."""

from __future__ import annotations


class MediaError(Exception):
    """A part that we cannot use; the message is for the one who sent it."""

    part: str | None = None
    """The part that it came as, where a task reads several."""
