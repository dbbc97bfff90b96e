"""Any task of the service by its name, also one that this client has no method for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from opsin.calls import Call, query_of
from opsin.pictures import Picture, encoded


def ask_call(task: str, parts: Mapping[str, Picture], options: Mapping[str, Any]) -> Call:
    """parts: by name, what `Client.classify` takes for a picture, of which any bytes are sent as they are. Raises TypeError, ValueError or
    OSError for what cannot be sent."""
    query = query_of(options)
    timeout = query.pop("timeout", None)
    return Call(
        "POST",
        f"/v1/{quote(task, safe='')}",
        query=query,
        headers={"Accept": "application/json"},
        parts={name: encoded(part) for name, part in parts.items()},
        timeout=None if timeout is None else float(timeout),
    )
