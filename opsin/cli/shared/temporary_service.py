"""A service of our own, for as long as a command needs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from opsin.cli.shared.errors import CommandError

START_SECONDS = 180.0
STOP_SECONDS = 60.0
FOREIGN = ("OPSIN_REDIS_URL", "OPSIN_CONFIG", "OPSIN_API_KEYS_FILE", "OPSIN_API_KEY")


@contextmanager
def temporary_service(
    bundles: Path, environment: Mapping[str, str] | None = None, *, python: str = sys.executable, folder: Path | None = None
) -> Iterator[str]:
    """Run `opsin serve` of these bundles alone, on a free port with a private queue, and yield its URL once it is ready; stop it at the
    end. Raises Failure.

    It does not outlive this process, even if that is killed. environment: the service's; None for the user's.
    python, folder: the interpreter and working folder of another checkout's service.
    """
    from server.processes.os_process import tied_to_parent

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # the queue, settings and keys that the user's environment may name belong to another service: ours must not join it
    given = os.environ if environment is None else environment
    own = {name: value for name, value in given.items() if name.upper() not in FOREIGN} | {"OPSIN_STARTERS": "false"}
    command = [python, "-P", "-m", "opsin", "serve", "--host", "127.0.0.1", "--port", str(port), "--bundles", str(bundles.resolve())]
    with tempfile.TemporaryFile("w+") as log:
        # in a session of its own Ctrl-C does not reach it: this process stops it in order
        process = subprocess.Popen(
            tied_to_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own, cwd=folder, start_new_session=True
        )
        around = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = f"{around},127.0.0.1" if around else "127.0.0.1"  # no proxy knows what listens on this machine alone
        try:
            _await_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _await_ready(process: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    from opsin.client import Client

    give_up = time.monotonic() + START_SECONDS
    with Client(url, timeout=5) as client:
        while not (readiness := client.ready()):
            if process.poll() is not None:
                raise CommandError(f"the service ended with exit code {process.returncode}: {_last_words(log)}")
            if time.monotonic() > give_up:
                raise CommandError(f"the service is not ready after {START_SECONDS:.0f} s ({readiness.reason}): {_last_words(log)}")
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """In order; a further Ctrl-C hurries it, and does not leave it behind."""
    until = time.monotonic() + STOP_SECONDS
    while process.poll() is None:
        try:
            process.terminate()
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        except KeyboardInterrupt:
            continue


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1] if lines else "it said nothing"
