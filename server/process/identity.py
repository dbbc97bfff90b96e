"""Ids of processes. Each start has a new one, so that nobody takes a process for its predecessor; a supervisor knows them by the prefix."""

from __future__ import annotations

import os
import secrets
import socket


def process_id() -> str:
    """For this process, new at each call."""
    return process_prefix(os.getpid()) + secrets.token_hex(4)


def process_prefix(pid: int) -> str:
    """What all ids of a process of this machine start with."""
    return f"{socket.gethostname()}-{pid}-"
