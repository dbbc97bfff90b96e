#!/usr/bin/env python3
"""The options of curl that the documentation uses, for machines without it: forms, bodies, headers and `-o`.

An answer of 400 or more ends it with 22, as `curl --fail` would. Imports little: it is started for every line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

TYPES = {
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
"""Suffix → type of a file in a form, as curl guesses it. It knows no types of videos and sounds."""
BOUNDARY = "----------------------------4d1e9f7a35009d5e"
Field = tuple[str, str | None, bytes]
"""Name, name of the file if it is one, and content."""


def main(arguments: list[str]) -> int:
    url, output = "", ""
    headers: dict[str, str] = {}
    content: bytes | None = None
    fields: list[Field] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-N", "-i", "-s"):
            continue
        if argument in ("-F", "--form"):
            name, _, value = next(rest).partition("=")
            path = Path(value[1:])
            fields.append((name, path.name, path.read_bytes()) if value.startswith("@") else (name, None, value.encode()))
        elif argument == "--form-string":
            name, _, value = next(rest).partition("=")
            fields.append((name, None, value.encode()))
        elif argument in ("-d", "--data-binary", "--json"):
            value = next(rest)
            content = _read(value[1:]) if value.startswith("@") else value.encode()
            headers.setdefault("Content-Type", "application/json" if argument == "--json" else "application/x-www-form-urlencoded")
        elif argument in ("-H", "--header"):
            name, _, value = next(rest).partition(":")
            headers[name] = value.strip()
        elif argument in ("-o", "--output"):
            output = next(rest)
        elif argument.startswith("-"):
            raise SystemExit(f"curl: option {argument} is not known here")
        else:
            url = argument
    if fields:
        content = _form(fields)
        headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
    place = urlsplit(url if "://" in url else f"http://{url}")
    connection = HTTPConnection(place.netloc, timeout=120)
    connection.request("GET" if content is None else "POST", place._replace(scheme="", netloc="").geturl(), content, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status >= 400:
        print(f"curl: {response.status} {answer.decode()}", file=sys.stderr)
        return 22
    if output:
        Path(output).write_bytes(answer)
    else:
        sys.stdout.buffer.write(answer + b"\n")
    return 0


def _form(fields: Sequence[Field]) -> bytes:
    """Encode a body of multipart/form-data."""
    parts = []
    for name, file, value in fields:
        about = f'name="{name}"' if file is None else f'name="{name}"; filename="{file}"\r\nContent-Type: {_type(file)}'
        parts += [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode(), value, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def _type(file: str) -> str:
    return TYPES.get(Path(file).suffix.lower(), "application/octet-stream")


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
