"""Bundles as workers announce them: which are served now, which are refused and why, and which one a request refers to."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from models.bundle import BundleSpec
from server.http.problems import Problem, ProblemKind
from server.queue.connect import RedisUnavailable
from server.queue.gateway.fleet import Fleet, FleetReader
from server.queue.messages import UNLOADED, ServedBundle, WorkerInfo
from server.quote import MAX_QUOTED_CHARS, quote
from server.settings import Settings
from server.tasks import base, registry
from server.tasks.base import SelectsBundles
from server.tasks.registry import REQUEST_KINDS, ROUTES, RequestKind, route_name

State = Literal["ready", "loading", "unloading", "unavailable", "unloaded"]

POLL_INTERVAL_S = 0.25
"""Time between polls of the fleet while a request waits for a worker."""
RETRY_AFTER_S = 5
"""Time after which a client may retry if there is no worker, or no Redis."""
NO_WORKER_REASON = "no worker serves it"
"""The reason of a bundle that no worker announces."""


class ModelDirectory:
    """A directory of what workers announce; while Redis is unavailable, of what they announced last."""

    def __init__(self, reader: FleetReader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings
        self.count_waiting: Callable[[int], None] = lambda _change: None
        """Called by how much the number of requests changes that wait for a first worker."""
        self._last: Fleet | None = None
        self._chosen_of: Fleet | None = None
        self._chosen: dict[tuple[str | None, str | None], BundleSpec] = {}
        self._served: dict[str, tuple[float, frozenset[str]]] = {}
        """Time at which a digest was last served, in monotonic seconds, and the ids of the workers that served it."""

    async def fleet(self) -> Fleet:
        """Read the fleet. Raises RedisUnavailable if Redis does not answer and never did."""
        try:
            fleet = await self._reader.read()
        except RedisUnavailable:
            if self._last is None:
                raise
            return self._last
        if fleet is not self._last:
            self._last = fleet
            self._served |= {digest: (time.monotonic(), workers) for digest, workers in _servers(fleet).items()}
        return fleet

    def last_known(self, model: str) -> BundleSpec | None:
        """Return the bundle of `name` or `name@version` in the last known fleet. None if there is none yet."""
        return None if self._last is None else self.choose(self._last, model, None)

    async def find(self, model: str | None, task: str | None) -> BundleSpec:
        """Return the bundle of `name`, `name@version` or None (the default); of any task if that is None. task: one of REQUEST_KINDS, whose
        route the bundle must answer on.

        Waits while nothing is known and workers still load. Raises Problem: 404 for a name that no ready worker announces and for a
        task of which no bundle is served, 422 if there is no default, 503 for a bundle that is refused, and after `worker_grace` without
        a ready worker; and RedisUnavailable after `redis_grace` without Redis.
        """
        started_at = time.monotonic()
        while True:
            try:
                fleet = await self.fleet()
            except RedisUnavailable:
                if time.monotonic() - started_at >= self._settings.redis_grace:
                    raise
            else:
                spec = self._choose_cached(fleet, model, task)
                if spec is not None:
                    return spec
                if any_ready(fleet) or settled(fleet) or is_refused(fleet, model):
                    raise self._unknown(fleet, model, task)
                if time.monotonic() - started_at >= self._settings.worker_grace:
                    raise no_worker(f"no worker became ready within {self._settings.worker_grace:g} s")
            self.count_waiting(1)
            try:
                await asyncio.sleep(POLL_INTERVAL_S)
            finally:
                self.count_waiting(-1)

    def _choose_cached(self, fleet: Fleet, model: str | None, task: str | None) -> BundleSpec | None:
        """Return `choose`, cached while the fleet is the same: it is read twice a second, and used by every request. Raises Problem (503)
        for a bundle that is refused."""
        if self._chosen_of is not fleet:
            self._chosen_of, self._chosen = fleet, {}
        request = model, task
        spec = self._chosen.get(request) or self.choose(fleet, model, task)
        if spec is None:
            return None
        if request not in self._chosen and (reason := self.refusal(fleet, spec)):
            raise unavailable(spec.id, reason)
        self._chosen[request] = spec
        return spec

    def refusal(self, fleet: Fleet, spec: BundleSpec) -> str:
        """Return the reason of `refusal`; empty also for `worker_grace` after a worker that served it has left: it may be restarting."""
        seen_at, workers = self._served.get(spec.digest(), (-math.inf, frozenset()))
        if time.monotonic() - seen_at < self._settings.worker_grace and not workers <= {worker.id for worker in living(fleet)}:
            return ""
        return refusal(fleet, spec)

    def choose(self, fleet: Fleet, model: str | None, task: str | None) -> BundleSpec | None:
        """Return the bundle, if it is known; of several versions the newest that is ready, else the newest."""
        if model is None:
            return None if task is None else self.default(fleet, task)
        return newest(fleet, matching_name(loaded_specs(fleet, task), model))

    def default(self, fleet: Fleet, task: str) -> BundleSpec | None:
        """Return the configured default of a task; else, of the ready or loading bundles, or of all known ones, the only one made for just
        these parts; else its starter bundle."""
        configured = self._settings.default_models.get(task)
        if configured is not None:
            return self.choose(fleet, configured, task)
        kind = REQUEST_KINDS[task]
        candidates = [spec for spec in loaded_specs(fleet, task) if registry.serves(kind.task, spec) and takes(spec, kind)]
        if isinstance(kind.task, SelectsBundles):
            candidates = [spec for spec in candidates if kind.task.can_answer(spec)] or candidates
        fitting = _best_fit(ready_or_loading(fleet, candidates) or candidates, kind)
        if len({spec.name for spec in fitting}) == 1:
            return newest(fleet, fitting)
        starters = ([spec for spec in candidates if spec.name == name] for name in Settings.starter_bundles)
        return newest(fleet, next(filter(None, starters), []))

    def defaults(self, fleet: Fleet) -> dict[str, BundleSpec | None]:
        """Return `default` of each of REQUEST_KINDS, by its name."""
        return {task: self.default(fleet, task) for task in REQUEST_KINDS}

    def not_ready_reason(self, fleet: Fleet) -> str | None:
        """Return the reason why requests that name no model cannot be answered by this fleet. None if they can."""
        if not any_ready(fleet):
            refused = [f"{id_} is unavailable: {reason}" for id_, reason in refusals(fleet).items()] if settled(fleet) else []
            return "; ".join(["no bundle is served", *refused]) if refused else "no worker is ready"
        for task in self._settings.default_models or REQUEST_KINDS:
            spec = self.default(fleet, task)
            if spec is None and task in self._settings.default_models:
                return f"no ready worker serves {self._settings.default_models[task]}, the default model for {task}"
            is_remembered = spec is not None and (spec.name, spec.version) in fleet.remembered and task not in self._settings.default_models
            if spec is not None and not is_remembered and state_of(fleet, spec)[0] != "ready":
                reason = refusal(fleet, spec)
                detail = f"; it is unavailable: {reason}" if reason else ""
                return f"no ready worker serves {spec.id}, the default model for {task}{detail}"
        return None

    def _unknown(self, fleet: Fleet, model: str | None, task: str | None) -> Problem:
        listed_ids = format_bundles(fleet, loaded_specs(fleet, task)) or "none"
        requested = self._settings.default_models.get(task or "") if model is None else model
        if requested is None:
            assert task is not None
            return _no_default(fleet, task)
        if is_unloaded(fleet, requested):
            return unloaded_problem(requested)
        if refused := named_unreadable(fleet, requested):
            return unavailable(*refused)
        if task is None:
            return Problem(ProblemKind.UNKNOWN_MODEL, f"{quote(requested)} is not served; known: {listed_ids}", "model")
        other, route = newest(fleet, matching_name(fleet.specs.values(), requested)), route_name(REQUEST_KINDS[task].task)
        if other is not None and not serves(task, other):
            reason = refusal(fleet, other)
            detail = f"is unavailable: {reason}" if reason else f"is for {other.route or other.task}"
            return Problem(ProblemKind.UNKNOWN_MODEL, f"{quote(requested)} {detail}; known for {route}: {listed_ids}", "model")
        return Problem(ProblemKind.UNKNOWN_MODEL, f"{quote(requested)} is not served; known for {route}: {listed_ids}", "model")


def _no_default(fleet: Fleet, task: str) -> Problem:
    """Return the problem of a request without a model, if there is no default. task: one of REQUEST_KINDS."""
    default = REQUEST_KINDS[task]
    candidates = [spec for spec in loaded_specs(fleet, task) if registry.serves(default.task, spec) and takes(spec, default)]
    suitable = format_bundles(fleet, ready_or_loading(fleet, candidates) or candidates)
    hint = f"(the operator can choose one: OPSIN_DEFAULT_MODELS__{task.upper().replace('-', '_')})"
    if default.parts:
        parts, it = " and ".join(sorted(default.parts)), "it" if len(default.parts) == 1 else "both"
        kind = ProblemKind.INVALID_OPTION if suitable else ProblemKind.UNKNOWN_MODEL
        detail = f"name one of those that take {it}: {suitable} {hint}" if suitable else f"no bundle that takes {it} is served"
        return Problem(kind, f"there is no default model for {parts}; {detail}", "model")
    if suitable:
        return Problem(ProblemKind.INVALID_OPTION, f"there is no default model for {task}; name one of: {suitable} {hint}", "model")
    if others := loaded_specs(fleet, task):
        parts, takes_of = " or ".join(part.name for part in default.task.parts), {spec.id: _takes(spec, task) for spec in others}
        alternatives = format_bundles(fleet, others, takes_of)
        return Problem(
            ProblemKind.UNKNOWN_MODEL, f"no bundle for {task} that takes {parts} is served; send what one of these takes: {alternatives}"
        )
    served = ", ".join(route for route in ROUTES if route != task and ready_or_loading(fleet, loaded_specs(fleet, route))) or "none"
    refused = "".join(f"; {id_} is unavailable: {reason}" for id_, reason in unreadable(fleet).items())
    return Problem(ProblemKind.UNKNOWN_MODEL, f"no bundle for {task} is served; tasks with one: {served}{refused}")


def _takes(spec: BundleSpec, route: str) -> str:
    """Return the parts that a bundle needs, or any of which it takes."""
    parts = base.accepted_parts(next(task for task in ROUTES[route] if registry.serves(task, spec)), spec)
    needed = [part.name for part in parts if part.required]
    return " and ".join(needed) or " or ".join(part.name for part in parts)


def format_bundles(fleet: Fleet, specs: Iterable[BundleSpec], facts: Mapping[str, str] | None = None) -> str:
    """Format ids of bundles with facts about them, and the state of those that are not ready, which come last."""
    states: dict[str, str] = {spec.id: state_of(fleet, spec)[0] for spec in specs}
    details = {id_: [*filter(None, [(facts or {}).get(id_, ""), "" if state == "ready" else state])] for id_, state in states.items()}
    order = sorted(states, key=lambda id_: (states[id_] != "ready", id_))
    return ", ".join(f"{id_} ({'; '.join(details[id_])})" if details[id_] else id_ for id_ in order)


def loaded_specs(fleet: Fleet, task: str | None) -> list[BundleSpec]:
    """Return known bundles of a task, or of any, that are not unloaded."""
    return [spec for spec in fleet.specs.values() if (task is None or serves(task, spec)) and fleet.repository.get(spec.name) != "unloaded"]


def serves(task: str, spec: BundleSpec) -> bool:
    """Return whether a bundle answers on the route of one of REQUEST_KINDS. Readiness must not wait for other
    bundles."""
    return any(registry.serves(one, spec) for one in ROUTES[route_name(REQUEST_KINDS[task].task)])


def ready_or_loading(fleet: Fleet, specs: Iterable[BundleSpec]) -> list[BundleSpec]:
    """Return the bundles that are ready or loading."""
    return [spec for spec in specs if state_of(fleet, spec)[0] in ("ready", "loading")]


def _best_fit(specs: Sequence[BundleSpec], kind: RequestKind) -> list[BundleSpec]:
    if not isinstance(kind.task, SelectsBundles):
        return list(specs)
    distance = min((kind.task.mismatch(spec, kind.parts) for spec in specs), default=0)
    return [spec for spec in specs if kind.task.mismatch(spec, kind.parts) == distance]


def takes(spec: BundleSpec, kind: RequestKind) -> bool:
    """Return whether a bundle that the task serves takes the parts of this kind of request."""
    parts = {part.name: part.required for part in base.accepted_parts(kind.task, spec)}
    return not kind.parts or (kind.parts <= parts.keys() and {name for name, required in parts.items() if required} <= kind.parts)


def matching_name(specs: Iterable[BundleSpec], model: str) -> list[BundleSpec]:
    """Return the bundles of this `name` or `name@version`."""
    name, at, version = model.partition("@")
    return [spec for spec in specs if spec.name == name and (not at or spec.version == version)]


def is_unloaded(fleet: Fleet, model: str | None) -> bool:
    """Return whether `name` or `name@version` is unloaded."""
    return model is not None and fleet.repository.get(model.partition("@")[0]) == "unloaded"


def is_refused(fleet: Fleet, model: str | None) -> bool:
    """Return whether `name` or `name@version` is unloaded, or cannot be read."""
    return model is not None and (is_unloaded(fleet, model) or named_unreadable(fleet, model) is not None)


def ready_bundles(fleet: Fleet) -> Iterator[tuple[WorkerInfo, ServedBundle]]:
    for worker in fleet.workers:
        if worker.state == "ready":
            yield from ((worker, bundle) for bundle in worker.bundles if bundle.state == "ready")


def any_ready(fleet: Fleet) -> bool:
    """Return whether a worker serves a bundle, or has found that its folder holds none."""
    return any(True for _ in ready_bundles(fleet)) or any(worker.state == "ready" and not worker.bundles for worker in fleet.workers)


def serving(fleet: Fleet, spec: BundleSpec) -> list[tuple[WorkerInfo, ServedBundle]]:
    """Return the ready workers that serve a bundle of this very content, with their announcements of it."""
    content = (spec.name, spec.version, spec.digest())
    return [(worker, bundle) for worker, bundle in ready_bundles(fleet) if (bundle.name, bundle.version, bundle.digest) == content]


def state_of(fleet: Fleet, spec: BundleSpec) -> tuple[State, str]:
    """Return a bundle's state over all workers, and the reason if one gave it."""
    if fleet.repository.get(spec.name) == "unloaded":
        return "unloaded", ""
    if serving(fleet, spec):
        return "ready", ""
    announced = _announcements(fleet, spec)
    states = [bundle.state for _, bundle in announced]
    if "loading" in states or ("starting", "ready") in [(worker.state, bundle.state) for worker, bundle in announced]:
        return "loading", ""  # an older worker that starts is not ready for any before it has loaded all
    if "unloading" in states:
        return "unloading", ""
    return "unavailable", next((bundle.reason for _, bundle in announced if bundle.reason), NO_WORKER_REASON)


def _announcements(fleet: Fleet, spec: BundleSpec) -> list[tuple[WorkerInfo, ServedBundle]]:
    """Return announcements of a bundle by the workers that do not drain, whichever content of it they have."""
    identity = spec.name, spec.version
    return [(worker, bundle) for worker in living(fleet) for bundle in worker.bundles if (bundle.name, bundle.version) == identity]


def living(fleet: Fleet) -> list[WorkerInfo]:
    """Return the workers that do not drain."""
    return [worker for worker in fleet.workers if worker.state != "draining"]


def _servers(fleet: Fleet) -> dict[str, frozenset[str]]:
    """Return the ids of the ready workers that serve each digest."""
    servers: dict[str, frozenset[str]] = {}
    for worker, bundle in ready_bundles(fleet):
        servers[bundle.digest] = servers.get(bundle.digest, frozenset()) | {worker.id}
    return servers


def settled(fleet: Fleet) -> bool:
    """Return whether there are workers, and they have finished loading: bundles that are not served now will not be without a change."""
    states = {worker.state for worker in fleet.workers}
    loads = any(bundle.state == "loading" for worker in fleet.workers for bundle in worker.bundles)
    return "ready" in states and "starting" not in states and not loads


def no_worker(detail: str) -> Problem:
    return Problem(ProblemKind.NO_WORKER, f"{detail} (OPSIN_WORKER_GRACE)", retry_after=RETRY_AFTER_S)


def unavailable(id_: str, reason: str) -> Problem:
    """Return a problem without Retry-After: time alone does not solve it."""
    return Problem(ProblemKind.BUNDLE_UNAVAILABLE, f"{id_} is unavailable: {reason}")


def refusal(fleet: Fleet, spec: BundleSpec) -> str:
    """Return why all living workers that have a bundle refuse it. Empty while one serves or loads it, has still to read its folder, or
    loads it again for an operator."""
    bundles = [bundle for _, bundle in _announcements(fleet, spec)]
    if is_unloaded(fleet, spec.name) or _one_has_yet_to_read(fleet):
        return ""
    if not all(bundle.state == "unavailable" and bundle.reason not in ("", UNLOADED) for bundle in bundles):
        return ""
    return bundles[0].reason if bundles else ""


def refusals(fleet: Fleet) -> dict[str, str]:
    """Return the reason for every bundle that is refused, also for those that cannot be read."""
    reasons = {spec.id: refusal(fleet, spec) for spec in fleet.specs.values()}
    return dict(sorted({id_: reason for id_, reason in (reasons | unreadable(fleet)).items() if reason}.items()))


def unreadable(fleet: Fleet) -> dict[str, str]:
    """Return the reasons for folders whose bundle.json cannot be read, or is another bundle's, in every worker that has them."""
    if _one_has_yet_to_read(fleet):
        return {}
    unread = [bundle for bundle in refused_bundles(fleet) if not bundle.digest and (bundle.name, bundle.version) not in fleet.specs]
    return {f"{one.name}@{one.version}": one.reason for one in unread}


def refused_bundles(fleet: Fleet) -> list[ServedBundle]:
    """Return what a living worker refuses, once for each worker, whether or not others serve it."""
    announced = [bundle for worker in living(fleet) for bundle in worker.bundles]
    return [bundle for bundle in announced if bundle.state == "unavailable" and bundle.reason not in ("", UNLOADED)]


def named_unreadable(fleet: Fleet, model: str) -> tuple[str, str] | None:
    """Return id and reason of the newest of `unreadable` with this `name` or `name@version`."""
    meant = [pair for pair in unreadable(fleet).items() if model in (pair[0], pair[0].partition("@")[0])]
    return max(meant, key=lambda pair: version_order(pair[0].partition("@")[2]), default=None)


def _one_has_yet_to_read(fleet: Fleet) -> bool:
    """Return whether a worker starts that has not announced its folder's contents."""
    return any(worker.state == "starting" and not worker.bundles for worker in fleet.workers)


def unloaded_problem(model: str) -> Problem:
    name = model.partition("@")[0]
    return Problem(
        ProblemKind.UNKNOWN_MODEL, f"{quote(name)} is unloaded; POST /v2/repository/models/{name[:MAX_QUOTED_CHARS]}/load loads it", "model"
    )


def newest(fleet: Fleet, versions: list[BundleSpec]) -> BundleSpec | None:
    """Return the highest version, those that are ready before all others, and those that are refused after them."""

    def rank(spec: BundleSpec) -> tuple[bool, bool, list[tuple[int, int | str]]]:
        return bool(serving(fleet, spec)), not refusal(fleet, spec), version_order(spec.version)

    return max(versions, key=rank, default=None)


def version_order(version: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts `10` after `9` and `1.10` after `1.9`."""
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", version) if part]
