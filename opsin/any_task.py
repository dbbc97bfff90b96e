"""Any task of the service by its name, also one that this client has no method for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from opsin.api_request import Call, option_text, query_of
from opsin.classification import Pictures, several
from opsin.image_encoding import Picture, encoded


def ask_call(task: str, parts: Mapping[str, Picture | Pictures], options: Mapping[str, Any]) -> Call:
    """parts: by name, what `Client.classify` takes for a picture or pictures, of which any bytes are sent as they are. options: a list or
    tuple is sent as a repeated option. Raises TypeError, ValueError or OSError for what cannot be sent."""
    form = {name: [option_text(one) for one in value] for name, value in options.items() if isinstance(value, list | tuple)}
    query = query_of({name: value for name, value in options.items() if name not in ("timeout", *form)})
    timeout = options.get("timeout")
    return Call(
        "POST",
        f"/v1/{quote(task, safe='')}",
        query=query,
        headers={"Accept": "application/json"},
        parts={name: _contents(name, part) for name, part in parts.items()},
        form=form,
        timeout=None if timeout is None else _seconds(timeout),
    )


def _contents(name: str, part: Any) -> list[bytes]:
    return [encoded(one, name) for one in (part if several(part) else [part])]


def _seconds(timeout: Any) -> float:
    """Raises ValueError."""
    try:
        return float(timeout)
    except (TypeError, ValueError) as error:
        raise ValueError(f"timeout: {timeout!r}; it must be a number of seconds") from error
