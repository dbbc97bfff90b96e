"""The bundles of a worker: those on disk, those that are loaded, and those that operators want loaded."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kernels.devices import is_out_of_memory, is_sticky
from models.bundle import GRAPH_FILE, SPEC_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Bundle, BundleError, BundleSpec
from models.bundle_folders import discover, find_misplaced, read_discovered
from models.loading import unsupported_reason
from server.processes import supervisor_protocol
from server.queue import keys
from server.queue.messages import UNLOADED, ServedBundle
from server.scheduler.batcher import Bucket, StepTimes
from server.tasks.embedding.vector_jobs import BUCKET_PREFIX
from server.telemetry import logs
from server.worker.backends.learner import backend_of
from server.worker.backends.loading import ReadyBundle
from server.worker.executors import Executor
from server.worker.stepwise import Stepwise

log = logs.get(__name__)

REMOVED_AFTER_S = 10.0
"""Time after which a missing folder counts as removed: one that is being replaced is missing for a moment, too."""
RETRY_LOADING_S = 30.0
"""Time after which a bundle that did not fit into memory is loaded again, since other programs may have freed some."""
UNLOAD_GRACE_S = 2.0
"""Time for which an unloaded bundle still runs jobs of gateways that do not know of it yet. Jobs of several steps finish in any case."""
MEMBER = "a member of a pipeline"
CRASHES_WORKERS_REASON = "it ended two workers while it was loaded, and is not loaded again until its files change"
MAX_BUCKETS = 256
"""Maximum number of buckets with step times: clients choose merge schedules, so their number is unlimited."""


@dataclass(frozen=True)
class BundleEntry:
    """One bundle folder and its state in this worker."""

    path: Path
    stamp: tuple[int, ...]
    spec: BundleSpec | None
    """None if bundle.json cannot be read."""
    digest: str
    """Digest of the spec; empty without one."""
    state: Literal["loading", "ready", "unloading", "unavailable"]
    reason: str = ""
    ready: ReadyBundle | None = None
    buckets: dict[str, StepTimes] = field(default_factory=dict)
    """Step times by bucket key, the latest used last."""
    since: float = 0.0
    """Monotonic seconds of the last change of state."""
    retry_at: float = 0.0
    """Monotonic seconds from which a bundle that cannot be served may be read again."""

    @property
    def nbytes(self) -> int:
        """Size of its files and of those of its members, in bytes."""
        return sum(self.stamp[1::2])

    @property
    def id(self) -> str:
        return self.spec.id if self.spec else _bundle_id(self.path)

    @property
    def queue(self) -> str:
        return keys.queue(self.id, self.digest)

    @property
    def is_refused(self) -> bool:
        """Whether it cannot be served as its files are."""
        return self.state == "unavailable" and self.reason not in (UNLOADED, MEMBER)

    @property
    def accepts_jobs(self) -> bool:
        """Whether jobs for it are pulled. Jobs pulled before it was lost still find its executor."""
        return self.ready is not None and self.state != "unavailable"

    @property
    def stepwise(self) -> Stepwise | None:
        """The executor of a loaded bundle whose jobs take several steps."""
        executor = self.ready.executor if self.ready else None
        return executor if isinstance(executor, Stepwise) else None

    @property
    def last_bucket_times(self) -> StepTimes:
        """Step times of the images' bucket that was used last."""
        buckets = list(self.buckets.items())  # a copy: other threads add buckets
        found = [steps for key, steps in buckets if not key.startswith(BUCKET_PREFIX)]
        return found[-1] if found else self.ready.steps if self.ready else StepTimes(1)

    def announcement(self, slots: int, reason: str) -> ServedBundle:
        latest = self.last_bucket_times if self.ready else None
        number_format, difference = self.ready.number_format(latest.best) if self.ready and latest else ("", None)
        steps_of_a_job = self.stepwise.mean_total if self.stepwise else 1.0
        steps_per_second = latest.items_per_second * slots if latest else 0.0
        return ServedBundle(
            name=self.spec.name if self.spec else self.path.parent.name,
            version=self.spec.version if self.spec else self.path.name,
            task=self.spec.task if self.spec else "",
            digest=self.digest,
            state=self.state,
            reason=reason,
            items_per_second=steps_per_second / steps_of_a_job,
            steps_per_second=steps_per_second if self.stepwise else 0.0,
            batch_budget=latest.best if latest else 0,
            unit=self.ready.executor.unit if self.ready else "",
            backends=self.ready.backends.backends_by_rung(latest.best) if self.ready and self.ready.backends and latest else {},
            format=number_format,
            max_difference=difference,
        )


class LoadedBundles:
    """Bundles that `refresh` loads and unloads in its thread. Other methods are for any thread and never wait for a load."""

    def __init__(
        self,
        root: Path,
        load: Callable[[Bundle], ReadyBundle],
        publish: Callable[[BundleSpec], object],
        changed: Callable[[], None],
        waiting: Callable[[Sequence[str]], Collection[str]] = lambda queues: (),
        defaults: Collection[str] = (),
        starters: Path | None = None,
    ) -> None:
        """Start empty. waiting: returns those of some queues that hold jobs. defaults: `name` or `name@version` of default bundles.
        starters: a second folder, whose bundles are served unless `root` has one of the same name that can be served."""
        self.folder = root
        self._load_bundle = load
        self._publish = publish
        self._changed = changed
        self._waiting = waiting
        self._defaults = defaults
        self._starters = starters
        self._entries: dict[Path, BundleEntry] = {}
        self._by_queue: dict[str, BundleEntry] = {}
        self._stepwise: dict[str, Stepwise] = {}
        self._putting = threading.Lock()
        self._listed = False
        """Whether the folder has been read once, and all specs are published."""
        self._missing: dict[Path, float] = {}
        """Missing folders → monotonic time at which each was first missed."""
        self._misplaced: list[str] = []
        """Latest warnings about folders that hold files of bundles but are not bundles."""

    def refresh(self, repository: Mapping[str, str]) -> None:
        """Load and unload bundles as the folder and `repository` (bundle name → `loaded` | `unloaded`) require."""
        local = list(discover(self.folder))
        self._warn_of_misplaced()
        shipped = [path for path in discover(self._starters) if path not in local] if self._starters is not None else []
        loaded_ids = {_bundle_id(path) for path in shipped if path in self._entries}
        self._read_changed([path for path in local if _bundle_id(path) not in loaded_ids], repository)  # others wait
        starters = self._starters_to_serve(local, shipped)
        self._read_changed(starters, repository)
        removed = self._find_removed(local + shipped) | (set(shipped) - set(starters))
        for entry in list(self._entries.values()):
            is_wanted = entry.spec is not None and entry.path not in removed and repository.get(entry.spec.name) != "unloaded"
            if is_wanted and entry.state == "unavailable" and entry.reason == UNLOADED:
                self._read(entry.path)  # with its present files
            elif not is_wanted and entry.state in ("loading", "ready"):
                self._put(replace(entry, state="unloading", since=time.monotonic()))
            elif is_wanted and entry.state == "unloading" and entry.stamp == _stamp(entry.path, entry.spec):
                self._put(replace(entry, state="ready" if entry.ready else "loading"))
            elif entry.state == "unloading" and time.monotonic() > entry.since + UNLOAD_GRACE_S:  # also if its files have changed
                if entry.stepwise is not None and entry.stepwise.residents:
                    continue
                self._put(replace(entry, state="unavailable", reason=UNLOADED, ready=None, buckets={}))
            elif entry.path in removed and entry.state == "unavailable":
                self._forget(entry)
        self._load_all()

    @property
    def loading(self) -> list[BundleEntry]:
        """Bundles that are being loaded or will be."""
        return [entry for entry in list(self._entries.values()) if entry.state == "loading"]

    @property
    def empty(self) -> bool:
        """Whether no folder of a bundle was found."""
        return not self._entries

    def list_queues(self) -> list[str]:
        """Return the queues to pull from."""
        return [queue for queue, entry in self._by_queue.items() if entry.accepts_jobs]

    def last_bucket_times(self) -> dict[str, StepTimes]:
        """Return the step times of the bundles behind these queues, by bundle id."""
        return {entry.id: entry.last_bucket_times for entry in self._by_queue.values() if entry.accepts_jobs}

    def mark_lost(self, queue: str, reason: str) -> None:
        """Stop serving a bundle whose weights cannot be loaded again. Its folder is read again, since it may have been repaired."""
        entry = self._by_queue.get(queue)
        if entry is not None and entry.accepts_jobs:
            log.error("bundle lost", bundle=entry.id, reason=reason)
            self._put(replace(entry, stamp=(), state="unavailable", reason=reason))

    def executor(self, queue: str) -> Executor | None:
        entry = self._by_queue.get(queue)
        return entry.ready.executor if entry and entry.ready else None

    def stepwise_by_queue(self) -> Mapping[str, Stepwise]:
        """Return the executors of the bundles whose jobs take several steps, by queue."""
        return self._stepwise

    def backends(self) -> Mapping[tuple[str, str], str]:
        """Return the backend of typical batches of each loaded bundle, by name and version."""
        return {
            (entry.spec.name, entry.spec.version): backend_of(backends.default_arm(entry.last_bucket_times.best))
            for entry in self._by_queue.values()
            if entry.spec and entry.ready and (backends := entry.ready.backends) and backends.has_choice
        }

    def step_times(self, bucket: Bucket) -> StepTimes:
        """Return the step times of a bucket. A new one starts with those of the warm-up, one of texts empty: their costs differ."""
        entry = self._by_queue.get(bucket.queue)
        if entry is None or entry.ready is None:
            return StepTimes(1)
        if bucket.key not in entry.buckets and len(entry.buckets) >= MAX_BUCKETS:
            del entry.buckets[next(iter(entry.buckets))]
        steps = entry.buckets.pop(bucket.key, None)
        if steps is None:
            steps = StepTimes(entry.ready.steps.largest) if bucket.key.startswith(BUCKET_PREFIX) else entry.ready.steps.copy()
        entry.buckets[bucket.key] = steps
        return steps

    def announcements(self, slots: int) -> list[ServedBundle]:
        """Describe the bundles, without members of pipelines unless these can also be used on their own."""
        if not self._listed:  # gateways would take a part of the folder for all of it and choose another default
            return []
        members = self._member_folders()
        entries = [entry for entry in list(self._entries.values()) if entry.path not in members or entry.state == "ready"]
        return [entry.announcement(slots, self._without_folders(entry.reason)) for entry in entries]

    def not_ready_reason(self) -> str:
        """Return why the folder is not served as it is: bundles that are being loaded or are refused, or none. Empty: it is."""
        refused = [f"{entry.id} is unavailable: {entry.reason}" for entry in list(self._entries.values()) if entry.is_refused]
        reasons = [f"{entry.id} is being loaded" for entry in self.loading] + refused
        return self._without_folders("; ".join(reasons)) if self._entries else "no bundle has been found"

    def _without_folders(self, reason: str) -> str:
        """Return a reason without paths of this machine, since clients read it."""
        folders = [str(folder) for folder in (self.folder, self._starters) if folder is not None]
        for folder in sorted(folders, key=len, reverse=True):  # one may be a suffix of the other
            reason = reason.replace(f"{folder}/", "")
        return reason

    def _warn_of_misplaced(self) -> None:
        """Log a warning about each misplaced folder, once until it is corrected."""
        found = find_misplaced(self.folder)
        for sentence in found:
            if sentence not in self._misplaced:
                log.warning(f"no bundle: {sentence}")
        self._misplaced = found

    def _read_changed(self, paths: Iterable[Path], repository: Mapping[str, str]) -> None:
        """Read new bundles, and those that could not be served and have changed since."""
        for path in paths:
            entry = self._entries.get(path)
            may_read = repository.get(path.parent.name) != "unloaded" and (entry is None or time.monotonic() >= entry.retry_at)
            if entry is None or (entry.state == "unavailable" and may_read and entry.stamp != _stamp(path, entry.spec)):
                self._read(path)

    def _starters_to_serve(self, local: Collection[Path], shipped: Sequence[Path]) -> list[Path]:
        """Return the starters to serve. A local bundle replaces the starter of its name and version. It also replaces other versions of
        its name: those that are loaded once it is ready, others unless it is refused. It does so until it is removed."""
        local_entries = [entry for entry in self._entries.values() if entry.path.parents[1] == self.folder]
        replaced_ids = {_bundle_id(path) for path in local} | {entry.id for entry in local_entries}
        ready = {entry.id.partition("@")[0] for entry in local_entries if entry.state == "ready"}
        serving = {entry.id.partition("@")[0] for entry in local_entries if not entry.is_refused}
        return [
            path
            for path in shipped
            if _bundle_id(path) not in replaced_ids and path.parent.name not in (ready if path in self._entries else serving)
        ]

    def _find_removed(self, found: Collection[Path]) -> set[Path]:
        """Return the folders that have been missing for `REMOVED_AFTER_S`, none if their parent cannot be read."""
        if not os.access(self.folder, os.R_OK | os.X_OK):
            self._missing.clear()
            return set()
        now = time.monotonic()
        self._missing = {path: self._missing.get(path, now) for path in self._entries if path not in found}
        return {path for path, since in self._missing.items() if now - since >= REMOVED_AFTER_S}

    def _forget(self, entry: BundleEntry) -> None:
        log.info("bundle removed", bundle=entry.id)
        with self._putting:
            self._set({path: other for path, other in self._entries.items() if path != entry.path})
        self._changed()

    def _read(self, path: Path) -> None:
        stamp = _stamp(path)
        try:
            spec = read_discovered(path).spec
            twin = next((entry for entry in self._entries.values() if entry.spec is not None and entry.id == spec.id), None)
            if twin is not None and twin.path != path:
                raise BundleError(f"{path / SPEC_FILE}: {spec.id} is already at {twin.path}")
        except BundleError as error:
            self._refuse(BundleEntry(path, stamp, None, "", "unavailable"), str(error))
            return
        self._put(BundleEntry(path, _stamp(path, spec), spec, spec.digest(), "loading", since=time.monotonic()))

    def _refuse(self, entry: BundleEntry, reason: str) -> None:
        log.error("bundle refused", bundle=entry.id, reason=reason)
        self._put(replace(entry, state="unavailable", reason=reason))

    def _load_all(self) -> None:
        """Load bundles: those with waiting jobs first, then default ones, then small ones. All are published before the first is loaded, so
        that requests for any of them wait instead of being refused."""
        members = self._member_folders()
        for entry in self.loading:
            if entry.spec is not None and entry.path in members and unsupported_reason(entry.spec) is not None:
                self._put(replace(entry, state="unavailable", reason=MEMBER))
            elif entry.spec is not None:
                self._publish(entry.spec)
        self._listed = True
        while unloaded := self.loading:
            waiting = self._waiting([entry.queue for entry in unloaded]) if len(unloaded) > 1 else ()
            self._load(min(unloaded, key=lambda entry: (entry.queue not in waiting, not self._is_default(entry), entry.nbytes)))

    def _is_default(self, entry: BundleEntry) -> bool:
        return entry.id in self._defaults or (entry.spec is not None and entry.spec.name in self._defaults)

    def _load(self, entry: BundleEntry) -> None:
        assert entry.spec is not None
        started, stamp = time.monotonic(), _stamp(entry.path, entry.spec)  # before loading, so that later changes are seen
        entry, content = replace(entry, stamp=stamp), f"{entry.id}:{entry.digest[:12]}:{'-'.join(map(str, stamp))}"
        if content in supervisor_protocol.refused_bundles():
            self._refuse(entry, CRASHES_WORKERS_REASON)
            return
        supervisor_protocol.report_loading(content)
        try:
            ready = self._load_bundle(Bundle(path=entry.path, spec=entry.spec))
        except Exception as error:
            if is_sticky(error):
                raise  # it ends the worker, whose supervisor knows what it loaded
            supervisor_protocol.report_loading("")
            reason = str(error)
            if is_out_of_memory(error):
                entry = replace(entry, stamp=(), retry_at=time.monotonic() + RETRY_LOADING_S)
                reason = f"it did not fit into memory: it is loaded again in {RETRY_LOADING_S:g} seconds"
            elif not isinstance(error, BundleError):
                log.exception("a model fails", bundle=entry.id)
                reason = f"{entry.path}: the model fails on its first batch; the log of its worker says how"
            self._refuse(entry, reason)
            return
        supervisor_protocol.report_loading("")
        log.info("bundle ready", bundle=entry.id, seconds=round(time.monotonic() - started, 1), **ready.log_fields())
        self._put(replace(entry, state="ready", ready=ready, since=time.monotonic()))

    def _member_folders(self) -> set[Path]:
        """Folders of the members of pipelines."""
        pipelines = [(entry.path, entry.spec) for entry in list(self._entries.values()) if entry.spec is not None and entry.spec.members]
        return {Bundle(path=path, spec=spec).member_path(member) for path, spec in pipelines for member in spec.members.values()}

    def _put(self, entry: BundleEntry) -> None:
        with self._putting:
            self._set(self._entries | {entry.path: entry})
        self._changed()

    def _set(self, entries: dict[Path, BundleEntry]) -> None:
        self._entries = entries
        self._by_queue = {entry.queue: entry for entry in self._entries.values() if entry.spec is not None}
        self._stepwise = {queue: entry.stepwise for queue, entry in self._by_queue.items() if entry.stepwise is not None}


def _bundle_id(path: Path) -> str:
    """Return the `name@version` of a bundle folder."""
    return f"{path.parent.name}@{path.name}"


def _stamp(path: Path, spec: BundleSpec | None = None) -> tuple[int, ...]:
    """Return times and sizes of the files of a bundle, of its members and of its external files."""
    members = [Bundle(path=path, spec=spec).member_path(member) for member in spec.members.values()] if spec else []
    external = [Path(file.path) for file in spec.external.values()] if spec else []
    inside = (folder / name for folder in (path, *members) for name in (SPEC_FILE, WEIGHTS_FILE, GRAPH_FILE, TOKENIZER_FILE))
    stamp: list[int] = []
    for file in (*inside, *external):
        try:
            stat = file.stat()
        except OSError:
            continue
        stamp += [stat.st_mtime_ns, stat.st_size]
    return tuple(stamp)
