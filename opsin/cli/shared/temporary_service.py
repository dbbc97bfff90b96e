"""A temporary service that lives as long as a command needs it."""

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
from typing import IO, TYPE_CHECKING

from opsin.cli.shared.errors import CommandError
from opsin.errors import OpsinError

if TYPE_CHECKING:
    from opsin.client import Client

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
FOREIGN_VARIABLES = ("OPSIN_REDIS_URL", "OPSIN_CONFIG", "OPSIN_API_KEYS_FILE", "OPSIN_API_KEY")


@contextmanager
def temporary_service(
    bundles: Path, environment: Mapping[str, str] | None = None, *, python: str = sys.executable, folder: Path | None = None
) -> Iterator[str]:
    """Run `opsin serve` with only these bundles, on a free port and with a private queue. Yield its URL once it is ready.

    The service does not outlive this process, even if that is killed. environment: the service's; None for the user's.
    python, folder: the interpreter and working folder of another checkout's service. Raises CommandError.
    """
    from server.processes.os_process import die_with_parent

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # the user's environment may name the queue, settings and keys of another service, which this one must not join
    inherited = os.environ if environment is None else environment
    service_environment = {name: value for name, value in inherited.items() if name.upper() not in FOREIGN_VARIABLES} | {
        "OPSIN_STARTERS": "false"
    }
    command = [python, "-P", "-m", "opsin", "serve", "--host", "127.0.0.1", "--port", str(port), "--bundles", str(bundles.resolve())]
    with tempfile.TemporaryFile("w+") as log:
        # in a separate session, so that Ctrl-C does not reach it and this process can stop it gracefully
        process = subprocess.Popen(
            die_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=service_environment,
            cwd=folder,
            start_new_session=True,
        )
        no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = f"{no_proxy},127.0.0.1" if no_proxy else "127.0.0.1"  # a proxy cannot reach a service on this machine
        try:
            _await_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _await_ready(process: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    from opsin.client import Client

    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url, timeout=5) as client:
        while not (readiness := client.ready()):
            if process.poll() is not None:
                raise CommandError(f"the service ended with exit code {process.returncode}: {_last_log_line(log)}")
            if _serves_nothing(client):
                raise CommandError(readiness.reason)
            if time.monotonic() > deadline:
                raise CommandError(f"the service is not ready after {START_TIMEOUT_S:.0f} s ({readiness.reason}): {_last_log_line(log)}")
            time.sleep(0.1)


def _serves_nothing(client: Client) -> bool:
    """Return whether the service has refused every bundle."""
    try:
        models = client.models()
    except OpsinError:
        return False
    return bool(models) and all(model.state == "unavailable" for model in models)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the service gracefully. Another Ctrl-C makes it stop sooner, but never leaves it behind."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while process.poll() is None:
        try:
            process.terminate()
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        except KeyboardInterrupt:
            continue


def _last_log_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1] if lines else "its log is empty"
