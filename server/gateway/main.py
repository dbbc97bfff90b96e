"""The gateway process: serves HTTP until it is told to end, then drains."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from server.gateway.admission import Admission
from server.gateway.app import create_app
from server.settings import Settings
from server.telemetry import logs

BACKLOG = 2048
LINGER = 1
"""Seconds that a slow reader gets to fetch its last response."""

log = logs.get(__name__)


def run_gateway(settings: Settings, *, fd: int | None = None) -> int:
    """Serve on the listening socket `fd`, or on the settings' host and port. Returns the exit code once ended by SIGTERM or SIGINT."""
    logs.configure(settings.log_level, process="gateway")
    try:
        listener = socket.socket(fileno=fd) if fd is not None else _listen(settings.host, settings.port)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.port, reason=error.strerror)
        return 2
    try:
        app = create_app(settings)
    except ValueError as error:
        log.error("cannot start", reason=str(error))
        return 2
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        log_config=None,
        log_level=max(settings.log_level.lower(), "warning", key=("debug", "info", "warning", "error", "critical").index),
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        proxy_headers=False,
        timeout_graceful_shutdown=LINGER,
    )
    log.info("listening", address=listener.getsockname())
    server = _Server(config, app.state.gateway.admission, settings.drain_timeout)
    server.run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """uvicorn with our end: its own handlers close the listener first and end the process by the signal."""

    def __init__(self, config: uvicorn.Config, admission: Admission, drain_timeout: float) -> None:
        super().__init__(config)
        self._admission = admission
        self._drain_timeout = drain_timeout
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        """The first signal drains while health checks are still answered; the second ends at once."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain())
        else:
            self._ending = asyncio.create_task(self._cut_off())

    async def _drain(self) -> None:
        await self._admission.drain(self._drain_timeout)
        self.should_exit = True

    async def _cut_off(self) -> None:
        await self._admission.cut_off()
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)
