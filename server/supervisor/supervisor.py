"""The loop that keeps the service's processes alive, and their end in order."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from server.processes import os_process
from server.processes.os_process import StopSignals
from server.processes.supervisor_protocol import MISUSE
from server.queue.keys import Keyspace
from server.queue.messages import WorkerInfo
from server.settings import OPEN, Settings
from server.supervisor.child_processes import Child, Template, copies_serve
from server.supervisor.liveness import OFTEN, SELDOM, Sightings
from server.supervisor.load_crashes import Losses
from server.supervisor.private_valkey import NoValkey, PrivateValkey
from server.telemetry import logs

log = logs.get(__name__)

TICK = 0.05
"""Seconds between two looks at what hangs or is due; a death cuts it short."""
HUNG = 30.0
"""Seconds without a sign of life after which a process is killed. A worker that still breathes but makes no progress ends itself."""
NEVER_SEEN = 180.0
"""Seconds after which a process is killed that never gave one: its start alone may take long."""
MARGIN = 5.0
"""Seconds beyond `drain_timeout` that a process gets to end."""
OF_WORKERS = {"OMP_WAIT_POLICY": "passive", "ORT_DISABLE_TELEMETRY": "1"}
"""Variables of workers unless ours say otherwise. Torch's threads must not spin while they wait for one that lost its core to the gateway.
ONNX Runtime must tell nobody of its sessions; what the template sets itself is no variable of its copies."""


def serve(settings: Settings) -> int:
    """Run the whole service until SIGTERM or SIGINT. Returns the exit code."""
    logs.configure(settings.log_level, process="supervisor")
    os_process.keep_from_others()
    signals = StopSignals(children=True)
    try:
        os_process.connection_limit(settings.max_connections)  # else each gateway would end by itself
        listener = os_process.listen(settings.host, settings.port)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        print(f"opsin: cannot listen on {settings.host}:{settings.port}: {reason}; --host and --port choose others", file=sys.stderr)
        return MISUSE
    except ValueError as error:
        print(f"opsin: {error}", file=sys.stderr)
        return MISUSE
    if settings.admits_strangers:
        log.warning(OPEN, host=settings.host)
    with listener:
        valkey = PrivateValkey() if settings.redis_url is None else None
        try:
            if valkey is not None:
                valkey.start()
            Supervisor(settings, listener, valkey, signals).run()
        except NoValkey as error:
            print(f"opsin: {error}", file=sys.stderr)
            return MISUSE
        finally:
            if valkey is not None:
                valkey.stop()
    return 0


class Supervisor:
    """Watches its children from the main thread, which also starts them: they die with the thread that started them."""

    def __init__(self, settings: Settings, listener: socket.socket, valkey: PrivateValkey | None, signals: StopSignals) -> None:
        url = valkey.url if valkey is not None else settings.redis_url
        assert url is not None
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self._settings = settings.model_copy(update={"redis_url": url, "port": port})
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._valkey = valkey
        self._signals = signals
        self._sightings = Sightings(url, Keyspace(settings.key_prefix))
        self._folder = Path(tempfile.mkdtemp(prefix="opsin-metrics-"))
        """Where several gateways add their metrics up, and workers tell which bundle they load."""
        self._losses = Losses(self._folder)
        self._template: Template | None = None
        if copies_serve(settings.device):
            self._template = Template(_opsin("template", *self._worker_options()), OF_WORKERS | self._environment())
        self._gateways = [self._gateway() for _ in range(settings.gateways)]
        self._workers = [self._worker() for _ in range(settings.workers)]

    def run(self) -> None:
        """Until a signal comes; then everything is ended in order."""
        self._sightings.start()
        try:
            announced = False
            while not self._signals.wait(TICK, self._template.fd if self._template is not None else None):
                if self._template is not None:
                    self._template.mend()
                self._mend(self._gateways)
                self._mend(self._workers)
                if self._valkey is not None:
                    self._valkey.mend(self._sightings.silent_since)
                self._sightings.every = SELDOM if announced and self._all_ready() else OFTEN
                if not announced and self._all_ready() and self._is_live():
                    announced = True
                    with suppress(OSError):  # nobody may be left to read it
                        print(self._ready_line(), flush=True)
        finally:
            self._end()

    def _mend(self, children: Iterable[Child]) -> None:
        """Bury what died, start what is due, kill what hangs."""
        for number, child in enumerate(children):
            death = child.reap()
            if death is not None and child.kind == "worker":
                self._sightings.bury_worker(death)
                self._losses.died(number, death.status)
            if child.due:
                child.start(self._losses.environment(number) if child.kind == "worker" else None)
            if child.pid:
                self._look_at(child)

    def _look_at(self, child: Child) -> None:
        info = self._sightings.worker(child.pid) if child.kind == "worker" else None
        alive = info is not None if child.kind == "worker" else self._sightings.gateway(child.pid)
        child.ready = child.ready or (info is not None and _has_loaded(info)) or (child.kind == "gateway" and alive)
        child.seen = child.seen or alive
        if alive or self._sightings.away_since is not None:
            child.seen_at = time.monotonic()
        elif time.monotonic() - child.seen_at > (HUNG if child.seen else NEVER_SEEN):
            log.error(f"{child.kind} hangs: killing it", pid=child.pid, silent_for=round(time.monotonic() - child.seen_at))
            child.kill_hung()
            child.seen_at = time.monotonic()

    def _all_ready(self) -> bool:
        return all(child.ready for child in (*self._gateways, *self._workers))

    def _is_live(self) -> bool:
        host, port = self._listener.getsockname()[:2]
        with closing(HTTPConnection(host, port, timeout=2)) as connection, suppress(OSError, HTTPException):
            connection.request("GET", "/health/live")
            return connection.getresponse().status == 200
        return False

    def _ready_line(self) -> str:
        infos = [info for child in self._workers if (info := self._sightings.worker(child.pid)) is not None]
        bundles = _bundles(infos, "ready")
        refused = _bundles(infos, "unavailable")
        folder = Path(self._settings.bundles)
        where = "where they lie in folders NAME/VERSION" if folder.is_dir() else "which is no folder"
        devices = ", ".join(sorted({info.device for info in infos})) or "no device"
        defaults = self._settings.default_models.items()
        absent = [f"{model}, the default for {task}" for task, model in defaults if model not in _names(bundles)]
        return (
            f"Opsin is ready on {self._address} with {len(self._gateways)} gateway(s), {len(infos)} worker(s) on {devices}, "
            f"bundles {', '.join(bundles) or f'none in {folder}, {where}'}"
            f"{'; refused: ' + ', '.join(refused) if refused else ''}{'; not there: ' + ', '.join(absent) if absent else ''}"
        )

    def _end(self) -> None:
        """Gateways first: what they have in flight still needs workers. A second signal hurries."""
        hurried = False
        for children, others in ((self._gateways, self._workers), (self._workers, [])):
            for child in children:
                child.signal(signal.SIGTERM)
            deadline, told = time.monotonic() + self._settings.drain_timeout + MARGIN, False
            while not all(child.ended for child in children) and time.monotonic() < deadline:
                hurried = self._signals.wait(TICK) or hurried
                if hurried and not told:
                    deadline, told = min(deadline, time.monotonic() + MARGIN), True
                    for child in children:
                        child.signal(signal.SIGTERM)
                if not hurried:
                    self._mend(others)
            for child in children:
                child.signal(signal.SIGKILL)
        if self._template is not None:
            self._template.end()
        self._sightings.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _gateway(self) -> Child:
        environment = self._environment()
        if self._settings.gateways > 1:
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        fd = self._listener.fileno()
        return Child("gateway", _opsin("gateway", "--fd", str(fd)), environment, fds=[fd])

    def _worker(self) -> Child:
        return Child("worker", _opsin("worker", *self._worker_options()), OF_WORKERS | self._environment(), template=self._template)

    def _worker_options(self) -> tuple[str, ...]:
        return "--bundles", str(self._settings.bundles), "--metrics-port", str(self._settings.metrics_port)

    def _environment(self) -> dict[str, str]:
        """Ours and the settings; a key of the user's own client is nothing to the service."""
        return {name: value for name, value in os.environ.items() if name.upper() != "OPSIN_API_KEY"} | self._settings.to_environment()


def _opsin(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "opsin", *arguments]


def _bundles(infos: Iterable[WorkerInfo], state: str) -> list[str]:
    return sorted({f"{bundle.name}@{bundle.version}" for info in infos for bundle in info.bundles if bundle.state == state})


def _has_loaded(info: WorkerInfo) -> bool:
    """Whether a worker serves and has come to an end of loading: it is ready with its first bundle."""
    return info.state == "ready" and all(bundle.state != "loading" for bundle in info.bundles)


def _names(bundles: Iterable[str]) -> set[str]:
    """By which they can be asked for: `name@version`, and `name` alone."""
    return {name for bundle in bundles for name in (bundle, bundle.partition("@")[0])}
