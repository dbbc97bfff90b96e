"""The gateway process: serves HTTP until a signal ends it, then drains."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import cast

import uvicorn

from models.registry import ExtensionError, all_extensions, systems
from server.gateway.app import create_app
from server.gateway.app_state import GatewayState
from server.http.connection_limits import ConnectionLimiter
from server.http.protocol import BoundedProtocol, protocol_with_limits
from server.media.images import silence_decoders
from server.processes import os_process
from server.settings import NO_API_KEYS_WARNING, Settings
from server.telemetry import logs

KEEP_ALIVE_S = 20
"""Idle time in seconds after which a connection is closed. Clients close earlier (httpx2 5 s, aiohttp 15 s), which matters: a request that
arrives while the gateway closes is lost."""

GC_THRESHOLDS = (10_000, 20, 20)
"""Thresholds of the collector: a request makes some hundred objects, and reference counts free nearly all of them."""
SWITCH_INTERVAL_S = 0.001
"""Time in seconds after which a thread that parses a large body hands the interpreter's lock to the event loop."""
# parameters of glibc's mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
MMAP_THRESHOLD_BYTES = 4 * 1024 * 1024
"""Size from which a block is mapped separately and returned when it is freed. glibc's default grows with the freed blocks."""
TRIM_THRESHOLD_BYTES = 64 * 1024 * 1024
"""Number of freed bytes that stay for the next requests until the next trim."""
ARENAS = 2
TRIM_EVERY_S = 20.0

log = logs.get(__name__)


def run_gateway(settings: Settings, *, fd: int | None = None) -> int:
    """Serve on the listening socket `fd`, or on the settings' host and port, until SIGTERM or SIGINT. Return the exit code."""
    logs.configure(settings.log_level, process="gateway")
    os_process.disable_dumping()
    silence_decoders()
    try:
        listener = socket.socket(fileno=fd) if fd is not None else os_process.listen(settings.host, settings.port)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.port, reason=error.strerror)
        return 2
    if fd is None and settings.admits_strangers:  # else the supervisor that listens has warned
        log.warning(NO_API_KEYS_WARNING, host=settings.host)
    try:
        systems()
        connections = os_process.connection_limit(settings.max_connections)
        app = create_app(settings.model_copy(update={"max_connections": connections}))  # shares of clients are parts of the real number
    except (ValueError, OSError, ExtensionError) as error:
        log.error("cannot start", reason=str(error))
        return 2
    for extension in all_extensions() if fd is None else ():  # else the workers of `opsin serve` log them
        log.info("extension loaded", **extension.facts)
    os_process.allow_connections(connections)
    if connections < settings.max_connections:
        needed = settings.max_connections + os_process.OWN_FILES
        log.warning(
            "connection limit is below OPSIN_MAX_CONNECTIONS: raise the open-file limit (ulimit -n)",
            connections=connections,
            wanted=settings.max_connections,
            files=connections + os_process.OWN_FILES,
            needed=needed,
        )
    limiter = ConnectionLimiter(connections, settings.trusted_proxies)
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=protocol_with_limits(limiter),
        ws="none",
        log_config=None,
        log_level=max(settings.log_level.lower(), "warning", key=("debug", "info", "warning", "error", "critical").index),
        access_log=False,
        server_header=False,
        backlog=os_process.BACKLOG,
        proxy_headers=False,
        timeout_graceful_shutdown=1,  # draining has waited for the responses
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _start_malloc_trimmer()
    gc.collect()
    gc.freeze()  # no later collection visits the modules while clients wait
    gc.set_threshold(*GC_THRESHOLDS)
    log.info("listening", address=listener.getsockname())
    _DrainingServer(config, limiter, app.gateway).run(sockets=[listener])
    return 0


class _DrainingServer(uvicorn.Server):
    """uvicorn with a draining shutdown: its own handlers close the listener first and re-raise the signal."""

    def __init__(self, config: uvicorn.Config, limiter: ConnectionLimiter, gateway: GatewayState) -> None:
        super().__init__(config)
        self._limiter = limiter
        self._gateway = gateway
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup`
            loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        yield

    def _on_stop_signal(self) -> None:
        """Drain on the first signal, while health checks are still answered; cancel everything on the second."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain())
        else:
            self._ending = asyncio.create_task(self._cancel_and_exit())

    def _on_sighup(self) -> None:
        """Drain when the terminal is lost, too. The shell and the kernel both send this signal, so the second one must not cancel."""
        if self._ending is None:
            self._on_stop_signal()

    async def _drain(self) -> None:
        """Take requests for `drain_delay`, but no two on one connection, so that clients open the next one elsewhere. Then finish."""
        gateway, settings, connections = self._gateway, self._gateway.settings, cast("set[BoundedProtocol]", self.server_state.connections)
        gateway.admission.is_leaving = self._limiter.are_leaving = True
        for connection in connections:
            connection.leave(at_once=False)
        await asyncio.sleep(settings.drain_delay)
        log.info("gateway draining")
        until = time.monotonic() + settings.drain_timeout
        for connection in connections:
            connection.leave(at_once=settings.drain_delay > 0)  # else its client may be sending a request now
        gateway.event_subscriptions.close()
        await gateway.admission.drain(settings.drain_timeout)
        while any(connection.is_busy for connection in connections) and time.monotonic() < until:
            await asyncio.sleep(0.05)  # a last response is read slowly, or is a result that is still being made
        self.should_exit = True

    async def _cancel_and_exit(self) -> None:
        await self._gateway.admission.cancel_all()
        self.should_exit = True


def _start_malloc_trimmer() -> None:
    """Start a thread that returns the memory of past bursts to the system. Does nothing if the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim") or not hasattr(libc, "mallopt"):
        return
    for parameter, value in ((MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES), (ARENA_MAX, ARENAS)):
        libc.mallopt(parameter, value)

    def trim() -> None:
        while True:
            time.sleep(TRIM_EVERY_S)
            libc.malloc_trim(0)

    threading.Thread(target=trim, name="trim", daemon=True).start()
