"""Whether two requests ask the same: a digest of route, parts and options as they were sent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from server.gateway.submission import Submission
from server.gateway.surface import Surface


def of(path: str, surface: Surface, query: Mapping[str, Sequence[object]], submission: Submission) -> str:
    """SHA-256. Neither what was drawn at random nor defaults, boundaries or the order of names count; that of a part's elements does."""
    digest = hashlib.sha256()

    def add(content: bytes) -> None:
        digest.update(b"%d:" % len(content))
        digest.update(content)

    add(path.encode())
    given = {**query, **submission.fields}
    for name in sorted(given):
        add(name.encode())
        add(msgspec.json.encode(surface.options[name].read(given[name])))
    for name in sorted(submission.parts):
        add(name.encode())
        for content in submission.parts[name]:
            add(content)
    return digest.hexdigest()
