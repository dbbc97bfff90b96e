"""HAProxy with the shipped configuration, in front of cells on this machine."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from server.processes.os_process import die_with_parent

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
MISSING = "haproxy is missing: sudo apt-get install haproxy"


def configuration(cells: Sequence[Sequence[int]], listener: int) -> str:
    """Return the shipped configuration for gateways on these ports, by cell, and this listening socket."""
    # abstract sockets are the same for all processes of this machine
    text = CONFIGURATION.read_text().replace("abns@opsin-", f"abns@{uuid.uuid4().hex}-").replace("bind :8000", f"bind fd@{listener}")
    for number, ports in enumerate(cells):
        lines = "\n".join(rf"\g<1>{place} 127.0.0.1:{port}" for place, port in enumerate(ports))
        text, count = re.subn(rf"(?m)^( +server \S+) cell-{number:02x}-gateway:8000$", lines, text)
        assert count == 2, f"cell {number} has a line in `any`, and one in its own section"
    return text


@contextmanager
def haproxy(cells: Sequence[Sequence[int]]) -> Iterator[str]:
    """Run HAProxy in front of gateways on these ports, by cell; yield its URL."""
    program = shutil.which("haproxy")
    assert program is not None, MISSING
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(configuration(cells, listener.fileno()))
        process = subprocess.Popen(
            die_with_parent([program, "-db", "-f", str(file)]), pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.wait()
