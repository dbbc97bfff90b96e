"""API keys as the operator writes them down: one key a line, of which the file has the SHA-256 alone.

`NAME sha256:HEX [max_items=N] [rate=N] [priority=normal] [metrics] [admin]`; empty lines and those that begin with `#` say nothing.
Messages name lines by their numbers: somebody may have written a key into one.
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
"""Keys begin with it, so that people and scanners for leaked secrets know them."""
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
"""It begins with a letter and has no colon: no address of a client looks like a name."""
BAD_NAME = "the name must begin with a letter and have at most 64 letters, digits, dots, hyphens and underscores"
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
NUMBER = re.compile(r"[0-9]{1,9}")
RATE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
FLAGS = ("metrics", "admin")


@dataclass(frozen=True)
class ApiKey:
    """The holder of a key, and what the key allows. It does not know the key."""

    name: str
    """Owns jobs, scenes and Idempotency-Keys; empty where the service asks for no keys."""
    max_items: int = 0
    """Most unfinished items of the name; 0: no limit of its own."""
    rate: float = 0.0
    """Most requests a second of the name; 0: no limit."""
    priority: Priority = "high"
    """The highest that may be asked for."""
    metrics: bool = False
    """Whether it may read `/metrics` and `/v1/status`."""
    admin: bool = False
    """Whether it may load and unload bundles, and read what `metrics` may."""


EVERYBODY = ApiKey("", metrics=True, admin=True)
"""Whoever asks where the service has no file of keys."""


@dataclass(frozen=True)
class KeyLines:
    """The contents of a file."""

    keys: Mapping[bytes, ApiKey] = field(default_factory=dict)
    """By the SHA-256 of the key: a key that somebody tries is looked up by its own, so no code compares keys byte by byte."""
    numbers: Mapping[bytes, int] = field(default_factory=dict)
    """The number of each key's line, the first one is 1."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Line that admits nobody → why, without a word of the line."""


def new_key() -> str:
    return PREFIX + secrets.token_hex(RANDOM_BYTES)


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def line_of(key: ApiKey, digest: bytes) -> str:
    """The line of a key, as `read_lines` reads it."""
    limits = {
        "max_items": str(key.max_items) if key.max_items else "",
        "rate": f"{key.rate:.9f}".rstrip("0").rstrip(".") if key.rate else "",
        "priority": key.priority if key.priority != "high" else "",
    }
    words = [f"{name}={value}" for name, value in limits.items() if value]
    return " ".join((key.name, f"sha256:{digest.hex()}", *words, *(flag for flag in FLAGS if getattr(key, flag))))


def read_lines(content: bytes) -> KeyLines:
    """Lines that cannot be understood are left out, and named in `bad`."""
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
                raise ValueError("the hash stands in an earlier line, too")
            if of_name.setdefault(key.name, key) != key:
                raise ValueError("its limits differ from those of an earlier line with the same name")
        except ValueError as error:
            bad[number] = str(error)
            continue
        keys[digest], numbers[digest] = key, number
    return KeyLines(keys, numbers, bad)


def lines_of(content: bytes, name: str, digest: str = "") -> set[int]:
    """The numbers of the lines that give a name keys whose hashes begin with `digest`, and of all that have one of these hashes: a line
    that admits nobody would admit again once the one before it is gone."""
    texts = enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), start=1)
    lines = {number: text.split()[:2] for number, text in texts if text.strip() and not text.lstrip().startswith("#")}
    start = f"sha256:{digest}" if digest else ""
    named = {number for number, [first, *rest] in lines.items() if first == name and "".join(rest).startswith(start)}
    hashes = {lines[number][-1] for number in named if len(lines[number]) > 1}
    return named | {number for number, [_, *rest] in lines.items() if not hashes.isdisjoint(rest)}


def _read(words: list[str]) -> tuple[ApiKey, bytes]:
    """Raises ValueError, whose message repeats no word."""
    name, digest, limits = words[0], DIGEST.fullmatch(words[1]) if len(words) > 1 else None, words[2:]
    if NAME.fullmatch(name) is None:
        raise ValueError(BAD_NAME)
    if digest is None:
        raise ValueError("behind the name stands no sha256: with 64 hexadecimal digits in lower case")
    given: dict[str, int | float | bool | Priority] = {}
    for word in limits:
        limit, _, value = word.partition("=")
        if limit in given:
            raise ValueError("a limit or right is given twice")
        given[limit] = _limit(limit, value) if word not in FLAGS else True
    return ApiKey(name, **given), bytes.fromhex(digest[1])  # type: ignore[arg-type]


def _limit(name: str, value: str) -> int | float | Priority:
    if name == "max_items" and NUMBER.fullmatch(value) and int(value):
        return int(value)
    if name == "rate" and RATE.fullmatch(value) and float(value):
        return float(value)
    if name == "priority" and value in PRIORITIES:
        return value
    raise ValueError("behind the hash stands something else than max_items=N, rate=N, priority=high|normal|low, metrics and admin")


def checked(key: ApiKey) -> ApiKey:
    """The key as its line is read again. Raises ValueError."""
    if NAME.fullmatch(key.name) is None:
        raise ValueError(BAD_NAME)
    return _read(line_of(key, bytes(32)).split())[0]


def read_file(path: Path) -> bytes:
    """Raises OSError, also for what is no regular file: the end of a pipe may never come."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def rewrite(path: Path, before: bytes, content: bytes) -> bool:
    """Write a file in place, since one that is mounted cannot be replaced by another. Whoever reads meanwhile finds the old or the new
    content, perhaps with empty lines behind it, but neither nothing nor the end of an old line. What is appended meanwhile stays, behind
    such lines. False: it does not hold `before` any more, and is as it was. Raises OSError."""
    with path.open("r+b", buffering=0) as file:
        if file.read() != before:
            return False
        os.pwrite(file.fileno(), content.ljust(len(before), b"\n"), 0)
        if os.fstat(file.fileno()).st_size <= len(before):
            os.ftruncate(file.fileno(), len(content))
        with suppress(OSError):  # some file systems cannot
            os.fsync(file.fileno())
    return True
