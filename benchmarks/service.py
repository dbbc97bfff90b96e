"""`opsin serve` as a user starts it, for as long as a measurement takes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0


@contextmanager
def running(bundles: Path, **settings: object) -> Iterator[str]:
    """Start the service on a free port, wait until it is ready, yield its URL, stop it. Settings as in `server.settings`."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    command = [str(Path(sys.executable).with_name("opsin")), "serve", "--port", str(port), "--bundles", str(bundles)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            try:
                _wait_until_ready(process, url)
            except RuntimeError as error:
                log.seek(0)
                raise RuntimeError(f"{error}; it said:\n{log.read()[-4000:]}") from None
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with status {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the service was not ready after {START_TIMEOUT:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
