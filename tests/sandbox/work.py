"""Work of children in tests of the sandbox."""

from __future__ import annotations

import os
import signal
import time


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
        case [b"fill"]:
            bytearray(10**10)
        case [b"print"]:
            print("a library that prints")
    return str(os.getpid()).encode() + b" " + message
