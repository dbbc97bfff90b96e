"""The queue's scripts: Lua files, and the types of what goes into them and comes out.

A process that runs one sends EVALSHA, and loads it again when Redis has forgotten it (restart, fail-over). Scripts that free memory or keep
the service alive run even if Redis is above its maxmemory: their first line says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

ArgsT = TypeVar("ArgsT")
ResultT = TypeVar("ResultT")

FOLDER = Path(__file__).parent / "scripts"
PARTS = ("base", "history", "items", "taking", "endings", "admission", "records")
"""Functions that several scripts use. Each file uses what stands before it."""


@dataclass(frozen=True, eq=False)
class Script(Generic[ArgsT, ResultT]):
    """A Lua file and its types. ARGV[1] is the msgpack of its `args`; messages follow, since Lua's msgpack knows no bytes. The answer is
    converted to `result`."""

    name: str
    args: type[ArgsT]
    result: type[ResultT]

    def arguments(self, args: ArgsT, messages: Iterable[bytes] = ()) -> list[bytes]:
        """Return ARGV."""
        return [msgspec.msgpack.encode(args), *messages]

    def read(self, answer: object) -> ResultT:
        """Return what Redis answered, as the script's type."""
        return msgspec.convert(answer, self.result)

    @cached_property
    def source(self) -> str:
        """The script behind the statements of the parts that it uses, since Redis makes each function again at each call."""
        flags, body = _read(self.name).split("\n", 1)
        used = _words(body)
        for statement, names in reversed(_statements()):
            if names & used:
                body = statement + body
                used |= _words(statement)
        return f"{flags}\n{body}"

    @cached_property
    def sha(self) -> str:
        """The name by which EVALSHA calls it."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@cache
def _statements() -> list[tuple[str, set[str]]]:
    """Return each statement of the parts, with the names that it declares."""
    code = "".join(re.sub(r"(?m)^(--.*)?\n", "", _read(f"parts/{part}")) for part in PARTS)
    return [(one, _words(one.partition("=")[0].partition("(")[0])) for one in re.split(r"(?m)^(?=local )", code) if one]


def _words(lua: str) -> set[str]:
    """Return what may be names of variables: neither fields nor comments."""
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", re.sub(r"--.*|'[^'\n]*'", "", lua))) - {"local", "function"}


def _read(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text()
