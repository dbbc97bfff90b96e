"""Child processes that misbehave.

`python -m tests.support.child_programs MODE` is a program for `confined_process`. A sandbox calls `work`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time

from models.processes import confined_process

if __name__ != "__main__":
    os.write(1, b"a library that writes while it is imported")


def work(message: bytes) -> bytes:
    """Return the message with the pid before it, or do what it says instead."""
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
            os.close(confined_process._output_fd)
            time.sleep(60)
        case [b"fill"]:
            bytearray(10**10)
        case [b"print"]:
            print("a library that prints")
    return str(os.getpid()).encode() + b" " + message


def run(mode: str) -> None:
    """Take the file and misbehave."""
    if mode == "talkative":  # the process that opens a video, but it says after every frame that it goes on
        from models.media import video_program

        video_program.PROGRESS_EVERY_S = 0.0
        video_program.main()
        return
    confined_process.receive_request()
    match mode:
        case "aborts":  # as compiled code does when it fails
            os.abort()
        case "exits":
            os._exit(os.EX_SOFTWARE)
        case "silent":
            time.sleep(3600)
        case "busy":  # says that it works and then is silent, confined
            confined_process.confine()
            print("a library that prints")
            confined_process.write_message({"works": True})
            time.sleep(3600)
        case "loud":  # an audio decoder that sends far more than the audio may hold
            confined_process.write_message({"samples": 2**33})


if __name__ == "__main__":
    if sys.argv[1] == "file":  # as `python FILE`
        runpy.run_path(sys.argv[2], run_name="__main__")
    elif sys.argv[1] == "code":  # as `python -c CODE`
        exec(sys.argv[2], {"__name__": "__main__"})
    else:
        run(sys.argv[1])
