#!/usr/bin/env python3
"""What the documentation uses of curl, for machines that have none: files and fields of forms, bodies, headers, and `-o`.

An answer of 400 or more ends it with 22, as `curl --fail` would.
"""

from __future__ import annotations

import sys
from pathlib import Path

import httpx


def main(arguments: list[str]) -> int:
    url, output = "", ""
    headers: dict[str, str] = {}
    content: bytes | None = None
    fields: list[tuple[str, tuple[str | None, bytes]]] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-N", "-i", "-s"):
            continue
        if argument in ("-F", "--form"):
            name, _, value = next(rest).partition("=")
            path = Path(value[1:])
            fields.append((name, (path.name, path.read_bytes()) if value.startswith("@") else (None, value.encode())))
        elif argument == "--form-string":
            name, _, value = next(rest).partition("=")
            fields.append((name, (None, value.encode())))
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
    if "://" not in url:
        url = f"http://{url}"
    sends = bool(fields) or content is not None
    answer = httpx.request("POST" if sends else "GET", url, headers=headers, content=content, files=fields or None, timeout=120)
    if answer.status_code >= 400:
        print(f"curl: {answer.status_code} {answer.text}", file=sys.stderr)
        return 22
    if output:
        Path(output).write_bytes(answer.content)
    else:
        sys.stdout.buffer.write(answer.content + b"\n")
    return 0


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
