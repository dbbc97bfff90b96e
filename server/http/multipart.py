"""The boundary of a multipart body, as its Content-Type names it."""

from __future__ import annotations

import re

from server.http.problems import Problem, ProblemKind

_PARAMETER = re.compile(r"""[ \t]*;[ \t]*(?:(?P<name>[^\s;="]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;"]*)))?""")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, 5.1.1."""


def boundary_of(content_types: list[str]) -> bytes:
    """content_types: values of Content-Type. Raises Problem (400) unless they name exactly one boundary: proxies and filters in front could
    read another form than we."""
    if len(content_types) != 1:
        raise _refusal(f"given {len(content_types)} times")
    text = content_types[0].rstrip(" \t")
    position, given = (text + ";").index(";"), []
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise _refusal("its parameters cannot be read")
        if (parameter["name"] or "").lower().partition("*")[0] == "boundary":
            given.append(parameter)
        position = parameter.end()
    if not given:
        raise _refusal("no boundary")
    if len(given) > 1:
        raise _refusal(f"{len(given)} boundaries")
    if "*" in given[0]["name"]:
        raise _refusal("`boundary*` means nothing in HTTP")
    boundary = given[0]["token"] if given[0]["quoted"] is None else re.sub(r"\\(.)", r"\1", given[0]["quoted"])
    if not _BOUNDARY.fullmatch(boundary):
        raise _refusal("a boundary has 1 to 70 letters, digits or '()+_,-./:=? and spaces, of which none is the last")
    return boundary.encode()


def _refusal(reason: str) -> Problem:
    detail = f"{reason}: a multipart body needs one boundary; let your HTTP client write this header"
    return Problem(ProblemKind.INVALID_BODY, detail, "Content-Type")
