"""Headers of a request, read one by one: Starlette's mapping costs several times as much, for each of those that most requests lack."""

from __future__ import annotations

from starlette.requests import Request


def header(request: Request, name: bytes) -> str | None:
    """The first header of this name, in lower case as servers hand it on."""
    for key, value in request.scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
