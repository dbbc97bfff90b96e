"""Programs of the engine: how they are executed, and how requests and files are passed to them. Imports only the standard library: every
program starts with it."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from typing import IO

LENGTH = struct.Struct("<I")
ACCEPTED = b"t"
"""Byte of a program to its owner: it has its file."""
ACCEPT_TIMEOUT_S = 1.0
"""Seconds after which a program that could accept its file and does not is considered frozen."""
INHERITED_VARIABLES = ("PATH", "LANG", "LD_LIBRARY_PATH")


def child_environment() -> dict[str, str]:
    """Return the environment of programs, without this process's variables, which may be passwords: paths of libraries, one thread each,
    and no extensions, which are code of others."""
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED_VARIABLES or name.startswith("OMP_")}
    return inherited | {"OMP_NUM_THREADS": "1", "OPSIN_EXTENSIONS": "false"}


def execute(program: str, channel: socket.socket, output: int) -> subprocess.Popen[bytes]:
    """Execute a module of the engine and its arguments. channel: its standard input. output: see `subprocess.Popen`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "opsin.engine", *program.split()],
        stdin=channel.fileno(),
        stdout=output,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        process_group=0,  # no Ctrl-C; in a session of its own it would share the CPUs as if it were a service (sched_autogroup)
        env=child_environment(),
    )


def send_request(channel: socket.socket, request: bytes, files: list[int]) -> None:
    """Send a request with descriptors of files. Raises OSError if the program has died or no longer reads."""
    socket.send_fds(channel, [LENGTH.pack(len(request))], files)
    channel.sendall(request)


def receive_request(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return a request and the descriptors of its files. Ends the program quietly if its owner has gone."""
    head, files, _, _ = socket.recv_fds(channel, LENGTH.size, 3)
    if not files:
        os._exit(0)
    body = bytearray(*LENGTH.unpack(head))
    rest = memoryview(body)
    while rest:
        count = channel.recv_into(rest)
        if not count:
            os._exit(0)
        rest = rest[count:]
    return bytes(body), files


def is_readable(descriptor: int, seconds: float = 0.0) -> bool:
    """Return True if there is something to read within `seconds`. `select` would accept only descriptors up to 1023."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(math.ceil(1000 * seconds)))


def to_file(data: bytes | memoryview) -> IO[bytes]:
    """Return a file with this content, positioned at the start; in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("opsin"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
    file.seek(0)
    return file
