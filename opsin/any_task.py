"""Requests for any task of the service by its name, also one that this client has no method for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from opsin.api_request import ApiRequest, option_text, query_of
from opsin.classification import ImageSequence, is_sequence
from opsin.image_encoding import ImageLike, encode


def task_request(task: str, parts: Mapping[str, ImageLike | ImageSequence], options: Mapping[str, Any]) -> ApiRequest:
    """Return the request for a task.

    parts: by name, one or more images as `Client.classify` takes them; bytes and files are sent as they are, whatever they hold.
    options: a list or tuple is sent as a repeated option. Raises TypeError, ValueError or OSError for values that cannot be sent.
    """
    repeated = {name: [option_text(one) for one in value] for name, value in options.items() if isinstance(value, list | tuple)}
    query = query_of({name: value for name, value in options.items() if name not in ("timeout", *repeated)})
    timeout = options.get("timeout")
    return ApiRequest(
        "POST",
        f"/v1/{quote(task, safe='')}",
        query=query,
        headers={"Accept": "application/json"},
        parts={name: _contents(name, part) for name, part in parts.items()},
        form=repeated,
        timeout=None if timeout is None else _seconds(timeout),
    )


def _contents(name: str, part: Any) -> list[bytes]:
    return [encode(one, name) for one in (part if is_sequence(part) else [part])]


def _seconds(timeout: Any) -> float:
    """Read a timeout in seconds. Raises ValueError if it is not a number."""
    try:
        return float(timeout)
    except (TypeError, ValueError) as error:
        raise ValueError(f"timeout: {timeout!r}; it must be a number of seconds") from error
