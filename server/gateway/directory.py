"""Bundles as workers announced them: which are served just now, which one a request means, and which requests wait for one that nobody
serves any more."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from models.bundle import BundleSpec
from server.http.problems import Kind, Problem
from server.process.interruption import Interruption
from server.queue.dispatch import Dispatcher
from server.queue.errors import RedisAway
from server.queue.fleet import Fleet
from server.queue.messages import ServedBundle, WorkerInfo
from server.quoting import QUOTED, quoted
from server.settings import Settings
from server.tasks.registry import DEFAULTS, ROUTES, Default
from server.telemetry import logs

State = Literal["ready", "loading", "unloading", "unavailable", "unloaded"]

POLL = 0.25
"""Seconds between looks at the fleet while a request waits for a worker."""
LOOK_EVERY = 1.0
"""Seconds between looks at the bundles that requests wait for."""
RETRY_AFTER = 5
"""Seconds after which a client may hope for a worker, or for Redis."""
NOBODY = "no worker serves it"
"""The reason of a bundle that no worker announces."""

log = logs.get(__name__)


class Directory:
    """Answers from what workers announced; while Redis is away, from the last that was heard."""

    def __init__(self, dispatcher: Dispatcher, settings: Settings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._last: Fleet | None = None
        self._chosen_of: Fleet | None = None
        self._chosen: dict[tuple[str | None, str | None], BundleSpec] = {}

    async def fleet(self) -> Fleet:
        """Raises RedisAway if Redis does not answer and never did."""
        try:
            self._last = await self._dispatcher.fleet()
        except RedisAway:
            if self._last is None:
                raise
        return self._last

    def latest(self, model: str) -> BundleSpec | None:
        """The bundle that `name` or `name@version` meant when the fleet was read last; None: nothing yet."""
        return None if self._last is None else self.choose(self._last, model, None)

    async def find(self, model: str | None, task: str | None) -> BundleSpec:
        """The bundle that `name`, `name@version` or None (the default) means; of any task where that is None. task: one of DEFAULTS, whose
        route the bundle is to answer on.

        Waits while nothing is known and no worker is ready. Raises Problem: 404 for a name that no ready worker makes known and for a
        task of which no bundle is served, 422 if there is no default, 503 after `worker_grace` without a ready worker; and RedisAway after
        `redis_grace` without Redis.
        """
        began = time.monotonic()
        while True:
            try:
                fleet = await self.fleet()
            except RedisAway:
                if time.monotonic() - began >= self._settings.redis_grace:
                    raise
            else:
                spec = self._meant(fleet, model, task)
                if spec is not None:
                    return spec
                if any(True for _ in ready_bundles(fleet)) or is_unloaded(fleet, model):
                    raise self._unknown(fleet, model, task)
                if time.monotonic() - began >= self._settings.worker_grace:
                    raise no_worker(f"no worker became ready within {self._settings.worker_grace:g} s", self._settings)
            await asyncio.sleep(POLL)

    def _meant(self, fleet: Fleet, model: str | None, task: str | None) -> BundleSpec | None:
        """`choose`, remembered while the fleet is the same: it is read twice a second, and asked by every request."""
        if self._chosen_of is not fleet:
            self._chosen_of, self._chosen = fleet, {}
        wanted = model, task
        spec = self._chosen.get(wanted) or self.choose(fleet, model, task)
        if spec is not None:
            self._chosen[wanted] = spec
        return spec

    def choose(self, fleet: Fleet, model: str | None, task: str | None) -> BundleSpec | None:
        """The bundle that is meant, if it is known; of several versions the newest that is ready, else the newest."""
        if model is None:
            return None if task is None else self.default(fleet, task)
        return newest(fleet, named(loaded(fleet, task), model))

    def default(self, fleet: Fleet, task: str) -> BundleSpec | None:
        """The configured default of a task; else, of those that are ready or on their way, or known at all, the only one that is made for
        just these parts; else its starter bundle."""
        configured = self._settings.default_models.get(task)
        if configured is not None:
            return self.choose(fleet, configured, task)
        wanted = DEFAULTS[task]
        known = [spec for spec in loaded(fleet, task) if wanted.task.serves(spec) and takes(spec, wanted)]
        known = [spec for spec in known if wanted.task.answers(spec)] or known
        fitting = _best_fit(coming(fleet, known) or known, wanted)
        if len({spec.name for spec in fitting}) == 1:
            return newest(fleet, fitting)
        starters = ([spec for spec in known if spec.name == name] for name in Settings.starter_bundles)
        return newest(fleet, next(filter(None, starters), []))

    async def why_not_ready(self) -> str | None:
        """The reason why requests that name no model cannot be answered now; None if they can."""
        try:
            fleet = await self._dispatcher.fleet()
        except RedisAway as error:
            return f"Redis refuses to work: {error.refusal}" if error.refusal else "Redis does not answer"
        if not any(True for _ in ready_bundles(fleet)):
            return "no worker is ready"
        for task in self._settings.default_models or DEFAULTS:
            spec = self.default(fleet, task)
            if spec is None and task in self._settings.default_models:
                return f"no ready worker serves {self._settings.default_models[task]}, the default model for {task}"
            if spec is not None and state_of(fleet, spec)[0] != "ready":
                return f"no ready worker serves {spec.id}, the default model for {task}"
        return None

    def _unknown(self, fleet: Fleet, model: str | None, task: str | None) -> Problem:
        known = ", ".join(sorted(spec.id for spec in loaded(fleet, task))) or "none"
        wanted = self._settings.default_models.get(task or "") if model is None else model
        if wanted is None:
            assert task is not None
            return _no_default(fleet, task)
        if is_unloaded(fleet, wanted):
            return unloaded(wanted)
        if task is None:
            return Problem(Kind.UNKNOWN_MODEL, f"{quoted(wanted)} is not served; known: {known}", "model")
        other, route = newest(fleet, named(fleet.specs.values(), wanted)), DEFAULTS[task].task.route_name
        if other is not None and not serves(task, other):
            why = refusal(fleet, other)
            what = f"is unavailable: {why}" if why else f"is for {other.answers or other.task}"
            return Problem(Kind.UNKNOWN_MODEL, f"{quoted(wanted)} {what}; known for {route}: {known}", "model")
        return Problem(Kind.UNKNOWN_MODEL, f"{quoted(wanted)} is not served; known for {route}: {known}", "model")


def _no_default(fleet: Fleet, task: str) -> Problem:
    """None of the bundles is meant where a request names none. task: one of DEFAULTS."""
    default = DEFAULTS[task]
    known = [spec for spec in loaded(fleet, task) if default.task.serves(spec) and takes(spec, default)]
    suitable = ", ".join(sorted(spec.id for spec in coming(fleet, known) or known))
    hint = f"(the operator can choose one: OPSIN_DEFAULT_MODELS__{task.upper().replace('-', '_')})"
    if default.parts:
        parts, it = " and ".join(sorted(default.parts)), "it" if len(default.parts) == 1 else "both"
        kind = Kind.INVALID_OPTION if suitable else Kind.UNKNOWN_MODEL
        detail = f"name one of those that take {it}: {suitable} {hint}" if suitable else f"no bundle that takes {it} is served"
        return Problem(kind, f"there is no default model for {parts}; {detail}", "model")
    if suitable:
        return Problem(Kind.INVALID_OPTION, f"there is no default model for {task}; name one of: {suitable} {hint}", "model")
    if others := loaded(fleet, task):
        parts, listed = " or ".join(part.name for part in default.task.parts), ", ".join(sorted(_with_parts(spec, task) for spec in others))
        return Problem(Kind.UNKNOWN_MODEL, f"no bundle for {task} that takes {parts} is served; send what one of these takes: {listed}")
    served = ", ".join(route for route in ROUTES if route != task and loaded(fleet, route)) or "none"
    return Problem(Kind.UNKNOWN_MODEL, f"no bundle for {task} is served; tasks with one: {served}")


def _with_parts(spec: BundleSpec, route: str) -> str:
    """The id of a bundle, and the parts that it needs, or any of which it takes."""
    parts = next(task for task in ROUTES[route] if task.serves(spec)).takes(spec)
    needed = [part.name for part in parts if part.required]
    return f"{spec.id} ({' and '.join(needed) or ' or '.join(part.name for part in parts)})"


class Desertion:
    """Ends requests that wait for a bundle without a ready worker for longer than `worker_grace`: Problem (503).

    It looks once a second for all requests of a gateway."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._settings = settings
        self._directory = directory
        self._waiting: set[_Waiting] = set()

    def watched(self, spec: BundleSpec, interruption: Interruption) -> _Waiting:
        """`with` it, while a request waits for an answer."""
        return _Waiting(self._waiting, spec, interruption)

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if self._waiting:
                    await self._look()
            except RedisAway:
                pass  # nobody knows; the dispatcher counts how long Redis is away
            except Exception:
                log.exception("looking for bundles without workers failed")

    async def _look(self) -> None:
        fleet = await self._directory.fleet()
        now, grace = time.monotonic(), self._settings.worker_grace
        served: dict[str, bool] = {}
        for waiting in self._waiting:
            spec = waiting.spec
            content = spec.digest()  # requests for the old and the new content of a bundle may wait at once
            if content not in served:
                served[content] = bool(serving(fleet, spec))
            if served[content]:
                waiting.since = now
            elif now - waiting.since >= grace:
                waiting.interruption.end(no_worker(_why(fleet, spec, grace), self._settings, refusal(fleet, spec)))


def _why(fleet: Fleet, spec: BundleSpec, grace: float) -> str:
    if any((bundle.name, bundle.version) == (spec.name, spec.version) for _, bundle in ready_bundles(fleet)):
        return f"{spec.id} was replaced while this request waited, and no worker was ready for its old content for {grace:g} s"
    return f"no worker was ready for {spec.id} for {grace:g} s"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that waits for an answer."""

    together: set[_Waiting]
    spec: BundleSpec
    interruption: Interruption
    since: float = field(default_factory=time.monotonic)
    """From when on the bundle had no worker, as far as this request saw."""

    def __enter__(self) -> None:
        self.together.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.together.discard(self)


def loaded(fleet: Fleet, task: str | None) -> list[BundleSpec]:
    """Known bundles of a task, or of any, that are not unloaded."""
    return [spec for spec in fleet.specs.values() if (task is None or serves(task, spec)) and fleet.repository.get(spec.name) != "unloaded"]


def serves(task: str, spec: BundleSpec) -> bool:
    """Whether a bundle answers on the route of one of DEFAULTS. One that can never be asked is nobody's default, which readiness would wait
    for."""
    return any(one.serves(spec) for one in ROUTES[DEFAULTS[task].task.route_name])


def coming(fleet: Fleet, specs: Iterable[BundleSpec]) -> list[BundleSpec]:
    """Those that are ready or on their way."""
    return [spec for spec in specs if state_of(fleet, spec)[0] in ("ready", "loading")]


def _best_fit(specs: Sequence[BundleSpec], wanted: Default) -> list[BundleSpec]:
    least = min((wanted.task.misfit(spec, wanted.parts) for spec in specs), default=0)
    return [spec for spec in specs if wanted.task.misfit(spec, wanted.parts) == least]


def takes(spec: BundleSpec, wanted: Default) -> bool:
    """Whether a bundle that the task serves takes the parts that this kind of request brings."""
    parts = {part.name: part.required for part in wanted.task.takes(spec)}
    return not wanted.parts or (wanted.parts <= parts.keys() and {name for name, required in parts.items() if required} <= wanted.parts)


def named(specs: Iterable[BundleSpec], model: str) -> list[BundleSpec]:
    """Those that `name` or `name@version` means."""
    name, at, version = model.partition("@")
    return [spec for spec in specs if spec.name == name and (not at or spec.version == version)]


def is_unloaded(fleet: Fleet, model: str | None) -> bool:
    """Whether `name` or `name@version` has been taken out of service."""
    return model is not None and fleet.repository.get(model.partition("@")[0]) == "unloaded"


def ready_bundles(fleet: Fleet) -> Iterator[tuple[WorkerInfo, ServedBundle]]:
    for worker in fleet.workers:
        if worker.state == "ready":
            yield from ((worker, bundle) for bundle in worker.bundles if bundle.state == "ready")


def serving(fleet: Fleet, spec: BundleSpec) -> list[tuple[WorkerInfo, ServedBundle]]:
    """The ready workers that serve a bundle of this very content, with what they announce of it."""
    wanted = (spec.name, spec.version, spec.digest())
    return [(worker, bundle) for worker, bundle in ready_bundles(fleet) if (bundle.name, bundle.version, bundle.digest) == wanted]


def state_of(fleet: Fleet, spec: BundleSpec) -> tuple[State, str]:
    """A bundle's state over all workers, and the reason where one gave one."""
    if fleet.repository.get(spec.name) == "unloaded":
        return "unloaded", ""
    if serving(fleet, spec):
        return "ready", ""
    announced = [
        (worker.state, bundle)
        for worker in fleet.workers
        for bundle in worker.bundles
        if (bundle.name, bundle.version) == (spec.name, spec.version)
    ]
    states = [bundle.state for _, bundle in announced]
    if "loading" in states or ("starting", "ready") in [(worker, bundle.state) for worker, bundle in announced]:
        return "loading", ""  # an older worker that starts is ready for none before it has loaded all
    if "unloading" in states:
        return "unloading", ""
    return "unavailable", next((bundle.reason for _, bundle in announced if bundle.reason), NOBODY)


def no_worker(detail: str, settings: Settings, reason: str = "") -> Problem:
    """reason: why workers refuse the bundle, where they said so."""
    why = f"; it is unavailable: {reason}" if reason else ""
    return Problem(Kind.NO_WORKER, f"{detail} (OPSIN_WORKER_GRACE){why}", retry_after=RETRY_AFTER)


def refusal(fleet: Fleet, spec: BundleSpec) -> str:
    """Why workers refuse a bundle; empty where none said so, or where another one may serve it yet."""
    state, reason = state_of(fleet, spec)
    return reason if state == "unavailable" and reason != NOBODY else ""


def unloaded(model: str) -> Problem:
    name = model.partition("@")[0]
    return Problem(Kind.UNKNOWN_MODEL, f"{quoted(name)} is unloaded; POST /v2/repository/models/{name[:QUOTED]}/load loads it", "model")


def newest(fleet: Fleet, versions: list[BundleSpec]) -> BundleSpec | None:
    """The highest version, those that are ready before all others."""
    return max(versions, key=lambda spec: (bool(serving(fleet, spec)), version_order(spec.version)), default=None)


def version_order(version: str) -> list[tuple[int, int | str]]:
    """Sorts `10` behind `9` and `1.10` behind `1.9`."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", version) if part]
