"""The loop that keeps the service's processes alive, and ends them in order."""

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
from math import ceil
from pathlib import Path

from server.processes import os_process
from server.processes.os_process import StopSignals, threads_allowed
from server.processes.supervisor_protocol import MISUSE
from server.queue.keys import Keyspace
from server.queue.messages import WorkerInfo
from server.settings import NO_API_KEYS_WARNING, Settings
from server.supervisor.child_processes import Child, ForkServer, LoadCrashTracker, can_fork_workers, worker_devices
from server.supervisor.liveness import FAST_POLL_S, SLOW_POLL_S, LivenessMonitor
from server.supervisor.private_valkey import PrivateValkey, ValkeyUnavailable
from server.telemetry import logs
from server.telemetry.tracing import read_sampler

log = logs.get(__name__)

POLL_INTERVAL_S = 0.05
"""Time between two checks of the children; a death cuts it short."""
HUNG_AFTER_S = 30.0
"""Time without a sign of life after which a process is killed. A worker that is alive but makes no progress ends itself."""
START_TIMEOUT_S = 180.0
"""Time without a first sign of life after which a process is killed: its start may take long."""
DRAIN_MARGIN_S = 5.0
"""Time to end beyond `drain_timeout`."""
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "ORT_DISABLE_TELEMETRY": "1"}
"""Default variables of workers. Torch's threads must not spin while they wait for one that lost its core to the gateway. ONNX Runtime must
not send telemetry; the template's own variables are not in its workers' environments."""


def serve(settings: Settings) -> int:
    """Run the whole service until SIGTERM or SIGINT. Returns the exit code."""
    logs.configure(settings.log_level, process="supervisor")
    os_process.disable_dumping()
    signals = StopSignals(children=True)
    try:
        os_process.connection_limit(settings.max_connections)  # else each gateway would end by itself
        read_sampler()
        listener = os_process.listen(settings.host, settings.port)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        print(f"opsin: cannot listen on {settings.host}:{settings.port}: {reason}; --host and --port choose others", file=sys.stderr)
        return MISUSE
    except ValueError as error:
        print(f"opsin: {error}", file=sys.stderr)
        return MISUSE
    if settings.admits_strangers:
        log.warning(NO_API_KEYS_WARNING, host=settings.host)
    with listener:
        valkey = PrivateValkey() if settings.redis_url is None else None
        try:
            if valkey is not None:
                valkey.start()
            return Supervisor(settings, listener, valkey, signals).run()
        except ValkeyUnavailable as error:
            print(f"opsin: {error}", file=sys.stderr)
            return MISUSE
        finally:
            if valkey is not None:
                valkey.stop()


class Supervisor:
    """A supervisor in the main thread, which also starts the children: they die with the thread that started them."""

    def __init__(self, settings: Settings, listener: socket.socket, valkey: PrivateValkey | None, signals: StopSignals) -> None:
        url = valkey.url if valkey is not None else settings.redis_url
        assert url is not None
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self._settings = settings.model_copy(update={"redis_url": url, "port": port})
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._valkey = valkey
        self._signals = signals
        self._liveness = LivenessMonitor(url, Keyspace.from_settings(settings))
        self._folder = Path(tempfile.mkdtemp(prefix="opsin-metrics-"))
        """Folder in which several gateways add their metrics up, and workers name the bundle that they load."""
        self._load_crashes = LoadCrashTracker(self._folder)
        self._template: ForkServer | None = None
        if can_fork_workers(settings.device):
            self._template = ForkServer(_opsin("template", *self._worker_options()), WORKER_ENVIRONMENT | self._environment())
        self._gateways = [self._gateway() for _ in range(settings.gateways)]
        self._announced, self._exit_code = False, 0
        devices = worker_devices(settings.device)
        count = settings.workers if "workers" in settings.model_fields_set else len(devices)
        # workers divide the memory of their device, and all of them the CPUs
        shares = {"OPSIN_WORKERS": str(ceil(count / len(devices))), "OPSIN_THREADS": str(settings.threads or threads_allowed(count))}
        self._workers = [self._worker(OPSIN_DEVICE=devices[number % len(devices)], **shares) for number in range(count)]

    def run(self) -> int:
        """Run until a stop signal, or until a worker cannot run as configured at its start; then end in order. Return the exit code."""
        self._liveness.start()
        try:
            while not (self._exit_code or self._signals.wait(POLL_INTERVAL_S, self._template.fd if self._template is not None else None)):
                if self._template is not None:
                    self._template.restart_if_due()
                self._reap_and_restart(self._gateways)
                self._reap_and_restart(self._workers)
                if self._valkey is not None:
                    self._valkey.restart_if_due(self._liveness.silent_since)
                self._liveness.poll_interval_s = SLOW_POLL_S if self._announced and self._all_ready() else FAST_POLL_S
                if not self._announced and self._all_ready() and self._is_live():
                    self._announced = True
                    with suppress(OSError):  # stdout may be closed
                        print(self._ready_line(), flush=True)
        finally:
            self._end()
        return self._exit_code

    def _reap_and_restart(self, children: Iterable[Child]) -> None:
        """Withdraw dead children, start those that are due, kill those that hang."""
        for number, child in enumerate(children):
            process_exit = child.reap(final_status=MISUSE if child.kind == "worker" and not self._announced else None)
            if process_exit is not None and child.kind == "worker":
                self._liveness.withdraw_worker(process_exit)
                self._load_crashes.record_exit(number, process_exit.status)
                if process_exit.status == MISUSE and not self._announced:
                    self._exit_code = MISUSE
            if child.is_due:
                child.start(self._load_crashes.environment(number) if child.kind == "worker" else None)
            if child.pid:
                self._kill_if_hung(child)

    def _kill_if_hung(self, child: Child) -> None:
        info = self._liveness.worker(child.pid) if child.kind == "worker" else None
        alive = info is not None if child.kind == "worker" else self._liveness.gateway(child.pid)
        child.ready = child.ready or (info is not None and _has_loaded(info)) or (child.kind == "gateway" and alive)
        child.seen = child.seen or alive
        if alive or self._liveness.unavailable_since is not None:
            child.seen_at = time.monotonic()
        elif time.monotonic() - child.seen_at > (HUNG_AFTER_S if child.seen else START_TIMEOUT_S):
            log.error(f"{child.kind} hung: killing it", pid=child.pid, silent_for=round(time.monotonic() - child.seen_at))
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
        infos = [info for child in self._workers if (info := self._liveness.worker(child.pid)) is not None]
        bundles = _bundles(infos, "ready")
        refused = _bundles(infos, "unavailable")
        folder = Path(self._settings.bundles)
        place = "where they are in folders NAME/VERSION" if folder.is_dir() else "which is not a folder"
        devices = ", ".join(sorted({info.device for info in infos})) or "no device"
        defaults = self._settings.default_models.items()
        absent = [f"{model}, the default for {task}" for task, model in defaults if model not in _names(bundles)]
        return (
            f"Opsin is ready on {self._address} with {len(self._gateways)} gateway(s), {len(infos)} worker(s) on {devices}, "
            f"bundles {', '.join(bundles) or f'none in {folder}, {place}'}"
            f"{'; refused: ' + ', '.join(refused) if refused else ''}{'; not found: ' + ', '.join(absent) if absent else ''}"
        )

    def _end(self) -> None:
        """End gateways first: their work in flight still needs workers. A second signal hurries."""
        hurried, settings = False, self._settings
        for children, others in ((self._gateways, self._workers), (self._workers, [])):
            for child in children:
                child.signal(signal.SIGTERM)
            deadline, repeated = time.monotonic() + settings.drain_delay + settings.drain_timeout + DRAIN_MARGIN_S, False
            while not all(child.ended for child in children) and time.monotonic() < deadline:
                hurried = self._signals.wait(POLL_INTERVAL_S) or hurried
                if hurried and not repeated:
                    deadline, repeated = min(deadline, time.monotonic() + DRAIN_MARGIN_S), True
                    for child in children:
                        child.signal(signal.SIGTERM)
                if not hurried:
                    self._reap_and_restart(others)
            for child in children:
                child.signal(signal.SIGKILL)
        if self._template is not None:
            self._template.end()
        self._liveness.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _gateway(self) -> Child:
        environment = self._environment()
        if self._settings.gateways > 1:
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        fd = self._listener.fileno()
        return Child("gateway", _opsin("gateway", "--fd", str(fd)), environment, fds=[fd])

    def _worker(self, **own_variables: str) -> Child:
        environment = WORKER_ENVIRONMENT | self._environment() | {"OPSIN_DRAIN_DELAY": "0"} | own_variables  # gateways end first
        return Child("worker", _opsin("worker", *self._worker_options()), environment, template=self._template)

    def _worker_options(self) -> tuple[str, ...]:
        return "--bundles", str(self._settings.bundles), "--metrics-port", str(self._settings.metrics_port)

    def _environment(self) -> dict[str, str]:
        """Return our environment and the settings, without the key of the user's client."""
        return {name: value for name, value in os.environ.items() if name.upper() != "OPSIN_API_KEY"} | self._settings.to_environment()


def _opsin(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "opsin", *arguments]


def _bundles(infos: Iterable[WorkerInfo], state: str) -> list[str]:
    return sorted({f"{bundle.name}@{bundle.version}" for info in infos for bundle in info.bundles if bundle.state == state})


def _has_loaded(info: WorkerInfo) -> bool:
    """Return whether a worker serves and has finished loading: it is ready with its first bundle."""
    return info.state == "ready" and all(bundle.state != "loading" for bundle in info.bundles)


def _names(bundles: Iterable[str]) -> set[str]:
    """Return the names of bundles for requests: `name@version`, and `name` alone."""
    return {name for bundle in bundles for name in (bundle, bundle.partition("@")[0])}
