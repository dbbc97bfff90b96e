"""Tar shards in the manner of webdataset: files of one sample stand together and have one name up to the first dot.

A shard's table of contents is read once and kept in the cache. After that a sample is a byte range, so that an epoch can be shuffled,
split over processes and resumed in its middle like any list of files. Shards lie on this machine or wherever fsspec reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from training.checkpoint import write_atomically
from training.data.source import UnreadableSample
from training.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_OPEN = 32
"""Shards that a process keeps open."""

Ranges = Mapping[str, tuple[int, int]]
"""Extension → first byte and length inside the shard."""


@dataclass(frozen=True)
class ShardMember:
    """One sample."""

    shard: str
    key: str
    ranges: Ranges

    def read(self, *extensions: str) -> bytes:
        """Read the file with the first of these extensions that exists. Raises UnreadableSample."""
        found = next((extension for extension in extensions if extension in self.ranges), None)
        if found is None:
            raise UnreadableSample(f"{self.shard}: {self.key} has {', '.join(self.ranges)}, and none of {', '.join(extensions)}")
        first, length = self.ranges[found]
        try:
            content = _read(self.shard, first, length)
        except OSError as error:
            raise UnreadableSample(f"{self.shard}: {self.key}.{found}: {error}") from error
        if len(content) < length:
            raise UnreadableSample(f"{self.shard}: {self.key}.{found} is cut short")
        return content


@dataclass(frozen=True)
class Shards:
    members: tuple[ShardMember, ...]
    ranges: tuple[range, ...]
    """Members of each shard."""

    def identity(self) -> dict[str, Any]:
        """Names and byte ranges of all samples."""
        digest = hashlib.sha256()
        for member in self.members:
            digest.update(f"{PurePosixPath(member.shard).name} {member.key} {sorted(member.ranges.items())}\n".encode())
        return {"files": len(self.members), "listing": digest.hexdigest()}


def expand(patterns: Sequence[str]) -> list[str]:
    """Paths, globs, ranges in braces (`part-{000..127}.tar`) and URLs → shards in order. Raises DataError."""
    found: list[str] = []
    for pattern in patterns:
        numbered = _expand_braces(pattern)
        for name in numbered:
            matches = [name] if "://" in name else _matching(Path(name))
            if not matches:
                raise DataError(f"data.shards: {name}: there is no such file")
            found += matches
    return found


def _matching(pattern: Path) -> list[str]:
    """`pattern` may have wildcards in any part."""
    anchor = Path(pattern.anchor)
    return sorted(str(path) for path in anchor.glob(str(pattern.relative_to(anchor))))


def _expand_braces(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    low, high = braces.groups()
    names = [f"{pattern[: braces.start()]}{number:0{len(low)}d}{pattern[braces.end() :]}" for number in range(int(low), int(high) + 1)]
    return [inner for name in names for inner in _expand_braces(name)]


def open_shards(patterns: Sequence[str], cache: Path) -> Shards:
    """List the samples of all shards. Raises DataError."""
    members: list[ShardMember] = []
    ranges: list[range] = []
    for shard in expand(patterns):
        contents = _contents(shard, cache)
        if not contents:
            raise DataError(f"{shard}: the shard is empty")
        ranges.append(range(len(members), len(members) + len(contents)))
        members += [ShardMember(shard, key, found) for key, found in contents.items()]
    return Shards(tuple(members), tuple(ranges))


def _contents(shard: str, cache: Path) -> dict[str, Ranges]:
    """Key → ranges, from the cache or the shard itself. Raises DataError."""
    try:
        state = _state(shard)
        table_file = cache / "shards" / f"{hashlib.sha256(f'{shard} {state}'.encode()).hexdigest()[:24]}.json"
        if not table_file.is_file():
            table_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(table_file, json.dumps(_scan(shard)))
        listed: dict[str, dict[str, list[int]]] = json.loads(table_file.read_text(encoding="utf-8"))
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard}: cannot be read as a tar shard ({error})") from error
    return {key: {name: (first, length) for name, (first, length) in found.items()} for key, found in listed.items()}


def _state(shard: str) -> str:
    """Mark that changes if the shard does."""
    if "://" not in shard:
        status = Path(shard).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    filesystem, path = fsspec.core.url_to_fs(shard)
    return str(filesystem.size(path))


def _scan(shard: str) -> dict[str, dict[str, tuple[int, int]]]:
    contents: dict[str, dict[str, tuple[int, int]]] = {}
    with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            folder, _, name = entry.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if entry.isfile() and dot and stem:
                contents.setdefault(f"{folder}/{stem}", {})[extension.lower()] = (entry.offset_data, entry.size)
    return contents


def _read(shard: str, first: int, length: int) -> bytes:
    """Read bytes without a file position, which forked processes would share."""
    if "://" not in shard:
        return os.pread(_open_shard(shard).fileno(), length, first)
    filesystem, path = _remote(shard, os.getpid())
    content: bytes = filesystem.cat_file(path, start=first, end=first + length)
    return content


@lru_cache(maxsize=_OPEN)
def _open_shard(shard: str) -> io.FileIO:
    """Open a shard. The cache closes the least recently used one."""
    return io.FileIO(shard)


@lru_cache(maxsize=_OPEN)
def _remote(shard: str, process: int) -> tuple[Any, str]:
    """Open a file system, once per process: connections do not survive a fork."""
    filesystem, path = fsspec.core.url_to_fs(shard)
    return filesystem, path
