"""The boundary of a multipart body, as its Content-Type names it."""

from __future__ import annotations

import re

from server.http.problems import Problem, ProblemKind

_PARAMETER = re.compile(r"""[ \t]*;[ \t]*(?:(?P<name>[^\s;="]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;"]*)))?""")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, 5.1.1."""


def boundary_of(content_types: list[str]) -> bytes:
    """Return the boundary that the values of Content-Type name. Raises Problem (400) unless it is exactly one: a proxy or filter could
    otherwise read another form than the server."""
    if len(content_types) != 1:
        raise _refusal(f"given {len(content_types)} times")
    text = content_types[0].rstrip(" \t")
    position, boundaries = (text + ";").index(";"), []
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise _refusal("its parameters cannot be read")
        if (parameter["name"] or "").lower().partition("*")[0] == "boundary":
            boundaries.append(parameter)
        position = parameter.end()
    if not boundaries:
        raise _refusal("no boundary")
    if len(boundaries) > 1:
        raise _refusal(f"{len(boundaries)} boundaries")
    if "*" in boundaries[0]["name"]:
        raise _refusal("`boundary*` means nothing in HTTP")
    boundary = boundaries[0]["token"] if boundaries[0]["quoted"] is None else re.sub(r"\\(.)", r"\1", boundaries[0]["quoted"])
    if not _BOUNDARY.fullmatch(boundary):
        raise _refusal("a boundary has 1 to 70 letters, digits or '()+_,-./:=? and spaces, of which none is the last")
    return boundary.encode()


def _refusal(reason: str) -> Problem:
    detail = f"{reason}: a multipart body needs one boundary; let your HTTP client write this header"
    return Problem(ProblemKind.INVALID_BODY, detail, "Content-Type")
