"""`opsin worker`: a process that loads bundles, pulls jobs, runs batches and replies.

Its threads: one more than there are slots pull jobs and run batches, one for each slot runs steps, one reads large payloads, one writes
replies, one sends heartbeats, one loads and unloads bundles, and one opens other backends for them. The main thread waits for signals.
They share `Slots` and the queue of results.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import msgspec
import torch
from prometheus_client import MetricsHandler

from kernels.devices import missing_gpu_reason
from kernels.malloc import keep_freed_memory
from models.bundle import Bundle
from models.bundle_folders import shipped_starters
from models.registry import ExtensionError, all_extensions, systems
from server.processes import os_process
from server.processes.os_process import StopSignals
from server.processes.supervisor_protocol import CRASHED, MISUSE, process_id
from server.queue.connect import FirstContact, RedisUnavailable
from server.queue.keys import Keyspace
from server.queue.worker.worker_queue import WorkerQueue
from server.scheduler.scheduler import IDLE_BLOCK_S, Scheduler
from server.scheduler.slots import Slots
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.metrics import WorkerMetrics, build_info
from server.telemetry.tracing import Tracer, start_tracer
from server.worker.backends.candidates import Candidates, lower_thread_priority
from server.worker.backends.learned_cache import LearnedCache
from server.worker.backends.loading import Loader, ReadyBundle
from server.worker.backends.runner import ModelMemory
from server.worker.device_layout import Layout, choose_layout
from server.worker.device_metrics import DeviceLoadCollector
from server.worker.heartbeat import Heartbeat
from server.worker.loaded_bundles import LoadedBundles
from server.worker.loops import BatchRunner, JobReceiver
from server.worker.reply_writer import ReplyWriter

log = logs.get(__name__)

CUDA_ENVIRONMENT = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Default environment variables, set before CUDA starts. cuDNN's attention would build a plan for each shape and thread, and with
expandable segments a batch can reuse the memory that batches of other sizes have freed."""
METRICS_PORTS = 100
"""Number of ports to try, from the configured one upwards."""
SWITCH_INTERVAL_S = 0.0005
"""Time after which another thread releases the GIL to one that computes, which needs it for each operation of a network. With Python's
default of 5 ms, it waits for an eighth of its time while eight videos are read."""
WATCH_INTERVAL_S = 1.0
"""Time between two checks of the bundles folder and the repository."""


def run_worker(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then finish the jobs and exit with 0. A second signal returns them to the queue at once.

    Returns an exit code only if it cannot serve at all."""
    logs.configure(settings.log_level, process="worker")
    os_process.disable_dumping()
    if settings.cache_folder is not None:
        os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache_folder / "triton"))
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        systems()
        layout, metrics = choose_layout(settings), WorkerMetrics()
        if (tracer := start_tracer("worker", metrics.spans_dropped)) is not None:
            gc.freeze()  # the modules of the SDK, as the fork server does with those of the worker
    except (ExtensionError, ValueError) as error:
        log.critical(str(error))
        return MISUSE
    for extension in all_extensions():
        log.info("extension loaded", **extension.facts)
    if settings.backend != settings.offered_backend:
        log.warning("backend is no longer offered: auto is used instead", backend=settings.backend)
    if settings.redis_url is None:
        log.critical("no queue: set OPSIN_REDIS_URL")
        return MISUSE
    if settings.device == "auto" and layout.device.type == "cpu" and (reason := missing_gpu_reason()):
        log.warning("no GPU: serving on the CPU", reason=reason)
    keep_freed_memory()
    torch.set_num_threads(layout.threads)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    host = settings.metrics_host or settings.host
    metrics.registry.register(build_info(torch=torch.__version__))
    if layout.device.type == "cuda":
        metrics.registry.register(DeviceLoadCollector(layout.device, layout.name))
    try:
        metrics_port = serve_metrics(metrics, host, settings.metrics_port)
    except OSError as error:
        log.critical("cannot serve metrics", host=host, port=settings.metrics_port, reason=str(error))
        return MISUSE
    Worker(settings, settings.redis_url, layout, metrics, metrics_port, tracer).run()
    if tracer is not None:
        tracer.export.close()
    os._exit(0)  # shutting torch down takes a second, and a batch that still runs can be neither interrupted nor answered


class Worker:
    """The threads of one worker process and how they start and end."""

    def __init__(
        self, settings: Settings, redis_url: str, layout: Layout, metrics: WorkerMetrics, metrics_port: int, tracer: Tracer | None
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._first = FirstContact(redis_url)
        self._queue = WorkerQueue(redis_url, process_id(), keyspace=Keyspace.from_settings(settings))
        self._metrics_port = metrics_port
        self._answers = ReplyWriter(self._queue, metrics, tracer)
        self._bundles = LoadedBundles(
            settings.bundles,
            self._load,
            self._queue.publish_spec,
            changed=lambda: self._heartbeat.beat_now(),
            waiting=self._queue.intake.waiting,
            defaults={*settings.default_models.values(), *settings.starter_bundles},
            starters=settings.starters_folder,
        )
        self._slots = Slots(Scheduler(layout.slots, self._bundles.step_times, self._bundles.stepwise_by_queue, layout.state_bytes))
        self._receiver = JobReceiver(self._queue, self._slots, self._bundles, metrics)
        self._runner = BatchRunner(self._queue, self._slots, self._bundles, self._answers, layout)
        cache = LearnedCache(settings.cache_folder)
        self._loader = Loader(layout, settings.dtype, cache, settings.offered_backend, ModelMemory(layout.model_bytes))
        self._candidates = Candidates(cache, self._slots.run_in_slot) if layout.device.type == "cuda" else Candidates(cache)
        self._heartbeat = Heartbeat(self._queue, self._slots, self._bundles, metrics, metrics_port, layout, settings.scene_ttl)
        metrics.not_ready_reason = lambda: "draining" if self._heartbeat.state == "draining" else self._bundles.not_ready_reason()

    def run(self) -> None:
        signals, layout = StopSignals(), self._layout
        facts = {"device": layout.name, "slots": layout.slots, "threads": layout.threads, "metrics_port": self._metrics_port}
        log.info("worker starts", id=self._queue.id, **facts)
        self._thread("heartbeat", self._heartbeat.run)
        self._thread("bundles", self._watch_bundles)
        self._thread("backends", self._open_backends)
        answering = self._thread("answer", self._answers.write_forever)
        self._thread("fetch", self._receiver.fetch_forever)
        slots = layout.slots
        working = [self._thread(f"work-{index}", partial(self._runner.run_batches, self._receiver, index)) for index in range(slots + 1)]
        working += [self._thread(f"step-{index}", partial(self._runner.run_steps, index)) for index in range(slots + 1, 2 * slots + 1)]

        signals.wait()
        log.info("draining", id=self._queue.id)
        self._heartbeat.set_state("draining")
        hurried = signals.wait(self._settings.drain_delay)  # pulls on: gateways may not know yet, and no other worker may have this content
        if unfinishable := self._slots.drain(self._settings.drain_timeout):
            self._runner.leave(unfinishable)
        until = time.monotonic() + self._settings.drain_timeout
        while any(thread.is_alive() for thread in working) and time.monotonic() < until and not hurried:
            if not self._slots.is_pulling:
                self._receiver.close()
            hurried = signals.wait(0.02)
        self._slots.wait_for_pull(2 * IDLE_BLOCK_S)  # the jobs of the last pull are returned too
        self._end(answering)

    def _end(self, answering: threading.Thread) -> None:
        unread = self._receiver.unread()  # first: jobs that arrive before the next line are in both
        unfinished = self._slots.stop()
        self._answers.close(answering, self._settings.drain_timeout)
        self._heartbeat.end()
        try:
            self._queue.intake.return_to_queue([*unfinished, *unread])
            self._queue.withdraw()
        except RedisUnavailable as away:
            log.warning("jobs not returned: other workers will reclaim them", reason=str(away))
        log.info("worker ends", id=self._queue.id, handed_back=len(unfinished))

    def _watch_bundles(self) -> None:
        away = False
        while self._heartbeat.state != "draining":
            try:
                states, revision = self._queue.repository()
                self._first.mark_reached()
                if away:
                    log.info("queue back")
                away = False
                self._bundles.refresh(states)
                self._heartbeat.set_revision(revision)
                if self._heartbeat.state == "starting":
                    self._heartbeat.set_state("ready")
                    if self._bundles.empty:
                        log.warning(_no_bundle(self._settings.bundles))
                self._queue.janitor()
            except RedisUnavailable as error:
                self._first.log_failure(error)
                if not away and not self._bundles.list_queues():  # otherwise the receiver logs it
                    log.warning("queue unavailable", reason=str(error))
                    away = True
            time.sleep(WATCH_INTERVAL_S)

    def _open_backends(self) -> None:
        lower_thread_priority()
        torch.set_num_threads(self._layout.threads)
        while self._heartbeat.state != "draining":
            if not self._bundles.loading:
                self._candidates.look(self._bundles.last_bucket_times())
            time.sleep(WATCH_INTERVAL_S)

    def _load(self, bundle: Bundle) -> ReadyBundle:
        ready = self._loader.load(bundle)
        self._candidates.add(bundle, self._loader.conditions(bundle.spec), ready.learned, ready.backends)
        typical_job = ready.learned.typical_job
        step_seconds = typical_job.step_seconds if typical_job else 0.0
        self._slots.seed_step_times(ready.steps, long=bool(ready.executor.unit), step_seconds=step_seconds)
        return ready

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def run_guarded() -> None:
            try:
                work()
            except BaseException:
                log.critical("thread failed: ending this worker", thread=name, exc_info=True)
                os._exit(CRASHED)

        thread = threading.Thread(target=run_guarded, name=name, daemon=True)
        thread.start()
        return thread


def _no_bundle(folder: Path) -> str:
    starters = shipped_starters()
    hint = "they are in the folder bundles of a checkout" if starters is None else f"--bundles {starters}"
    return (
        f"no bundle to serve: {folder} holds none in a folder NAME/VERSION. `opsin import CHECKPOINT -o {folder}/NAME` adds one "
        f"while this worker runs; to serve the starters: {hint}"
    )


def serve_metrics(metrics: WorkerMetrics, host: str, first_port: int) -> int:
    """Serve the metrics and `/health/ready` on `first_port` or the next free port (0: any) and return the port. Raises OSError."""
    kind = type("Server", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    handler = type("Handler", (MonitoringHandler,), {"registry": metrics.registry, "metrics": metrics})
    for port in range(first_port, min(first_port + METRICS_PORTS, 65536)):
        try:
            server: ThreadingHTTPServer = kind((host, port), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return int(server.server_port)
    raise OSError(errno.EADDRINUSE, f"no free port for metrics on {host} in {first_port}..{first_port + METRICS_PORTS - 1}")


class MonitoringHandler(MetricsHandler):
    """Answers `/health/ready` itself, and everything else with the metrics."""

    metrics: WorkerMetrics

    def do_GET(self) -> None:  # noqa: N802
        if self.path != "/health/ready":
            super().do_GET()
            return
        reason = self.metrics.not_ready_reason()
        self.send_response(503 if reason else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(msgspec.json.encode({"ready": False, "detail": reason} if reason else {"ready": True}))
