"""The gateway process: serves HTTP until it is told to end, then drains."""

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

import uvicorn

from models.registry import ExtensionError, all_extensions, systems
from server.gateway.app import create_app
from server.gateway.inference.admission import Admission
from server.gateway.jobs.event_subscriptions import EventSubscriptions
from server.http.connection_limits import ConnectionLimiter
from server.http.protocol import protocol_with_limits
from server.media.images import silence_decoders
from server.processes import os_process
from server.settings import NO_API_KEYS_WARNING, Settings
from server.telemetry import logs

KEEP_ALIVE_S = 20
"""Seconds for which a connection may idle. Clients keep theirs for less (httpx2 5 s, aiohttp 15 s): it is they who close, since a request
that comes in the moment in which the gateway closes is lost."""
SHUTDOWN_GRACE_S = 1
"""Seconds that a slow reader gets to fetch its last response."""

GC_THRESHOLDS = (10_000, 20, 20)
"""A request makes some hundred objects, and reference counts free nearly all of them."""
SWITCH_INTERVAL_S = 0.001
"""Seconds after which a thread that works on a large body lets the event loop have the interpreter's lock."""
# parameters of glibc's mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
MMAP_THRESHOLD_BYTES = 4 * 1024 * 1024
"""Bytes from which a block is mapped by itself, and given back as soon as it is freed. By default this grows with what is freed."""
TRIM_THRESHOLD_BYTES = 64 * 1024 * 1024
"""Freed bytes that stay for the next requests, until the next trim."""
ARENAS = 2
TRIM_EVERY_S = 20.0

log = logs.get(__name__)


def run_gateway(settings: Settings, *, fd: int | None = None) -> int:
    """Serve on the listening socket `fd`, or on the settings' host and port. Returns the exit code once ended by SIGTERM or SIGINT."""
    logs.configure(settings.log_level, process="gateway")
    os_process.disable_dumping()
    silence_decoders()
    try:
        listener = socket.socket(fileno=fd) if fd is not None else os_process.listen(settings.host, settings.port)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.port, reason=error.strerror)
        return 2
    if fd is None and settings.admits_strangers:  # else whoever listens has said so
        log.warning(NO_API_KEYS_WARNING, host=settings.host)
    try:
        systems()
        connections = os_process.connection_limit(settings.max_connections)
        app = create_app(settings.model_copy(update={"max_connections": connections}))  # shares are parts of what there is
    except (ValueError, OSError, ExtensionError) as error:
        log.error("cannot start", reason=str(error))
        return 2
    for extension in all_extensions():
        log.info("extension loaded", name=extension.name, package=extension.package, version=extension.version)
    os_process.allow_connections(connections)
    if connections < settings.max_connections:
        needed = settings.max_connections + os_process.OWN_FILES
        log.warning(
            "fewer connections than OPSIN_MAX_CONNECTIONS: the limit of open files (ulimit -n) is too low",
            connections=connections,
            wanted=settings.max_connections,
            files=connections + os_process.OWN_FILES,
            needed=needed,
        )
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=protocol_with_limits(ConnectionLimiter(connections, settings.trusted_proxies)),
        ws="none",
        log_config=None,
        log_level=max(settings.log_level.lower(), "warning", key=("debug", "info", "warning", "error", "critical").index),
        access_log=False,
        server_header=False,
        backlog=os_process.BACKLOG,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _start_malloc_trimmer()
    gc.collect()
    gc.freeze()  # the modules are no garbage, and no collection need look at them again while clients wait
    gc.set_threshold(*GC_THRESHOLDS)
    log.info("listening", address=listener.getsockname())
    _DrainingServer(config, app.gateway.admission, app.gateway.readers, settings.drain_timeout).run(sockets=[listener])
    return 0


class _DrainingServer(uvicorn.Server):
    """uvicorn with our end: its own handlers close the listener first and end the process by the signal."""

    def __init__(self, config: uvicorn.Config, admission: Admission, readers: EventSubscriptions, drain_timeout: float) -> None:
        super().__init__(config)
        self._readers = readers
        self._admission = admission
        self._drain_timeout = drain_timeout
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
        """The first signal drains while health checks are still answered; the second ends at once."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain())
        else:
            self._ending = asyncio.create_task(self._cancel_and_exit())

    def _on_sighup(self) -> None:
        """The loss of the terminal drains, too. It is said twice, by the shell and by the kernel, and ends nothing at once."""
        if self._ending is None:
            self._on_stop_signal()

    async def _drain(self) -> None:
        log.info("gateway drains")
        self._readers.close()
        await self._admission.drain(self._drain_timeout)
        self.should_exit = True

    async def _cancel_and_exit(self) -> None:
        await self._admission.cancel_all()
        self.should_exit = True


def _start_malloc_trimmer() -> None:
    """Memory that a burst of large bodies and images took goes back to the system from now on, by a thread of its own.

    Does nothing where the C library is not glibc."""
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
