"""The process behind a `ChildRoom`: reads messages from stdin, writes answers to stdout, until stdin ends.

python -m server.process.child package.module:function BYTES
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import BinaryIO

from server.process.child_room import DONE, LENGTH, RAISED

Work = Callable[[bytes], bytes]


def main(reference: str, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    module, _, name = reference.partition(":")
    work: Work = getattr(import_module(module), name)
    while (message := _read(sys.stdin.buffer)) is not None:
        answer = _answer(work, message)
        answers.write(len(answer).to_bytes(LENGTH))
        answers.write(answer)
        answers.flush()


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(LENGTH)
    return stream.read(int.from_bytes(head)) if len(head) == LENGTH else None


def _answer(work: Work, message: bytes) -> bytes:
    try:
        return DONE + work(message)
    except MemoryError:
        return RAISED + b"it needs more memory than it may have"
    except Exception as error:
        traceback.print_exc()
        return RAISED + f"{type(error).__name__}: {error}".encode()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
