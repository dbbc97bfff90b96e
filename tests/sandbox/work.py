"""Work of children in tests of the sandbox."""

from __future__ import annotations

import os
import signal
import time

from models.processes import confined_process

os.write(1, b"a library that writes while it is imported")


def work(message: bytes) -> bytes:
    match message.split():
        case [b"sleep"]:
            time.sleep(60)
        case [b"die"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case [b"exit"]:
            os._exit(3)
        case [b"raise"]:
            raise ValueError("no such shape")
        case [b"quote"]:
            raise ValueError("x" * 3_000_000)
        case [b"close"]:
            os.close(confined_process._answers)
            time.sleep(60)
        case [b"fill"]:
            bytearray(10**10)
        case [b"print"]:
            print("a library that prints")
    return str(os.getpid()).encode() + b" " + message
