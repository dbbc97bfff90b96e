"""API keys as the operator writes them: one key a line, stored as SHA-256 only.

`NAME sha256:HEX [max_items=N] [rate=N] [priority=normal] [metrics] [admin]`; empty lines and lines that begin with `#` are ignored.
Messages name lines by number, since a line may contain a key by mistake.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.queue.messages import PRIORITIES, Priority

PREFIX = "opsin_"
"""Prefix of keys, by which people and scanners for leaked secrets recognise them."""
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
"""Names begin with a letter and have no colon, so that no client's address looks like a name."""
BAD_NAME = "the name must begin with a letter and have at most 64 letters, digits, dots, hyphens and underscores"
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
NUMBER = re.compile(r"[0-9]{1,9}")
RATE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
FLAGS = ("metrics", "admin")


@dataclass(frozen=True)
class ApiKey:
    """The holder of a key and its permissions, without the key itself."""

    name: str
    """Owner of jobs, scenes and Idempotency-Keys; empty if the service requires no keys."""
    max_items: int = 0
    """Maximum number of unfinished items of the name. 0: no limit of its own."""
    rate: float = 0.0
    """Maximum number of requests a second of the name. 0: no limit."""
    priority: Priority = "high"
    """Highest priority that may be requested."""
    metrics: bool = False
    """Whether it may read `/metrics` and `/v1/status`."""
    admin: bool = False
    """Whether it may load and unload bundles, and read what `metrics` may."""


ANONYMOUS_KEY = ApiKey("", metrics=True, admin=True)
"""Key of all clients of a service without a key file."""


@dataclass(frozen=True)
class ParsedKeyFile:
    """The parsed contents of a key file."""

    keys: Mapping[bytes, ApiKey] = field(default_factory=dict)
    """Keys by their SHA-256: a presented key is looked up by its own, so no code compares keys byte by byte."""
    line_numbers: Mapping[bytes, int] = field(default_factory=dict)
    """Number of each key's line, counted from 1."""
    invalid_lines: Mapping[int, str] = field(default_factory=dict)
    """Reasons by the numbers of invalid lines, without a word of the line."""


def new_key() -> str:
    return PREFIX + secrets.token_hex(RANDOM_BYTES)


def hash_key(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def format_line(key: ApiKey, digest: bytes) -> str:
    """Return the line of a key, in the format that `parse_key_file` reads."""
    limits = {
        "max_items": str(key.max_items) if key.max_items else "",
        "rate": f"{key.rate:.9f}".rstrip("0").rstrip(".") if key.rate else "",
        "priority": key.priority if key.priority != "high" else "",
    }
    words = [f"{name}={value}" for name, value in limits.items() if value]
    return " ".join((key.name, f"sha256:{digest.hex()}", *words, *(flag for flag in FLAGS if getattr(key, flag))))


def parse_key_file(content: bytes) -> ParsedKeyFile:
    """Parse a key file. Invalid lines are left out, and listed in `invalid_lines`."""
    keys: dict[bytes, ApiKey] = {}
    numbers: dict[bytes, int] = {}
    bad: dict[int, str] = {}
    of_name: dict[str, ApiKey] = {}
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key, digest = _read(words)
            if digest in keys:
                raise ValueError("the hash is in an earlier line, too")
            if of_name.setdefault(key.name, key) != key:
                raise ValueError("its limits differ from those of an earlier line with the same name")
        except ValueError as error:
            bad[number] = str(error)
            continue
        keys[digest], numbers[digest] = key, number
    return ParsedKeyFile(keys, numbers, bad)


def matching_lines(content: bytes, name: str, digest: str = "") -> set[int]:
    """Return the numbers of the lines that give a name keys whose hashes begin with `digest`, and of all with one of these hashes.

    An invalid repetition would become valid once the line before it is gone."""
    texts = enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), start=1)
    lines = {number: text.split()[:2] for number, text in texts if text.strip() and not text.lstrip().startswith("#")}
    start = f"sha256:{digest}" if digest else ""
    named = {number for number, [first, *rest] in lines.items() if first == name and "".join(rest).startswith(start)}
    hashes = {lines[number][-1] for number in named if len(lines[number]) > 1}
    return named | {number for number, [_, *rest] in lines.items() if not hashes.isdisjoint(rest)}


def _read(words: list[str]) -> tuple[ApiKey, bytes]:
    """Parse the words of a line. Raises ValueError, whose message repeats none of them."""
    name, digest, limits = words[0], DIGEST.fullmatch(words[1]) if len(words) > 1 else None, words[2:]
    if NAME.fullmatch(name) is None:
        raise ValueError(BAD_NAME)
    if digest is None:
        raise ValueError("no sha256: with 64 lower-case hexadecimal digits after the name")
    limits_given: dict[str, int | float | bool | Priority] = {}
    for word in limits:
        limit, _, value = word.partition("=")
        if limit in limits_given:
            raise ValueError("a limit or right is given twice")
        limits_given[limit] = _limit(limit, value) if word not in FLAGS else True
    return ApiKey(name, **limits_given), bytes.fromhex(digest[1])  # type: ignore[arg-type]


def _limit(name: str, value: str) -> int | float | Priority:
    if name == "max_items" and NUMBER.fullmatch(value) and int(value):
        return int(value)
    if name == "rate" and RATE.fullmatch(value) and float(value):
        return float(value)
    if name == "priority" and value in PRIORITIES:
        return value
    raise ValueError("something else than max_items=N, rate=N, priority=high|normal|low, metrics and admin after the hash")


def validated_key(key: ApiKey) -> ApiKey:
    """Return the key as its line is parsed again. Raises ValueError."""
    if NAME.fullmatch(key.name) is None:
        raise ValueError(BAD_NAME)
    return _read(format_line(key, bytes(32)).split())[0]


def read_file(path: Path) -> bytes:
    """Read a file. Raises OSError, also if it is not a regular file: a pipe may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def rewrite(path: Path, before: bytes, content: bytes) -> bool:
    """Write a file in place, since a mounted file cannot be replaced. Return False, without a change, if it no longer holds `before`.

    Concurrent readers find the old or the new content, perhaps followed by empty lines, but neither an empty file nor the end of an old
    line. Lines appended concurrently stay, after such empty lines. Raises OSError."""
    with path.open("r+b", buffering=0) as file:
        if file.read() != before:
            return False
        os.pwrite(file.fileno(), content.ljust(len(before), b"\n"), 0)
        if os.fstat(file.fileno()).st_size <= len(before):
            os.ftruncate(file.fileno(), len(content))
        with suppress(OSError):  # some file systems cannot
            os.fsync(file.fileno())
    return True
