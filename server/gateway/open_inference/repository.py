"""The model repository: its bundles, and loading and unloading them in every worker.

The operators' orders are a hash in Redis, so all gateways agree on it and workers that start later obey. Only names that a worker has
announced are written into it. Each change of it has a number, and a worker announces the number that its bundles are in line with, from
which a gateway knows that all have followed.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from starlette.requests import Request

from models.bundle import NAME_PATTERN
from server.gateway.auth.middleware import require_right
from server.gateway.model_directory import is_unloaded, living, state_of, version_order
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.dispatcher import DispatcherTimings
from server.queue.gateway.fleet import Fleet, FleetReader
from server.queue.messages import ServedBundle
from server.quote import MAX_QUOTED_CHARS, quote
from server.settings import Settings

POLL_INTERVAL_S = 0.1
LOAD_TIMEOUT_S = 120.0
"""Maximum time in which workers load a bundle. One that takes longer continues; only the client's call ends."""
DISCOVERY_TIMEOUT_S = 3.0
"""Time in which an idle worker finds and announces a new folder: it checks every second."""
PORTS = {"http": 80, "https": 443}


def check_allowed(request: Request, settings: Settings) -> None:
    """Check that the client may load and unload bundles: the operator must allow it, and so must its API key, if there are keys.

    Web pages of another origin never may. Raises Problem (403).

    Browsers name the page's origin in `Origin`; other clients send none."""
    host = request.headers.get("host", "")
    for origin in request.headers.getlist("origin"):
        if not _is_same(origin, host):
            raise Problem(ProblemKind.MODEL_CONTROL, f"web pages of another origin ({quote(origin)}) never may load or unload models")
    if settings.model_control != "explicit":
        raise Problem(
            ProblemKind.MODEL_CONTROL, "loading and unloading models is off; the operator turns it on with OPSIN_MODEL_CONTROL=explicit"
        )
    require_right("admin", request)


def index(fleet: Fleet, *, ready_only: bool) -> list[dict[str, str]]:
    """List every bundle folder that a worker knows, also unreadable ones."""
    announced = {(bundle.name, bundle.version): bundle for worker in fleet.workers for bundle in worker.bundles}
    entries = []
    for (name, version), bundle in sorted(announced.items(), key=lambda item: (item[0][0], version_order(item[0][1]))):
        state, reason = _state(fleet, bundle)
        if state == "READY" or not ready_only:
            entries.append({"name": name, "version": version, "state": state, "reason": reason})
    return entries


async def load(name: str, reader: FleetReader) -> None:
    """Load a bundle, until every living worker has tried and one serves it. Raises Problem: 400 with the reason, 503."""
    if not await _wait_for_bundle(name, reader):
        raise Problem(ProblemKind.INVALID_BODY, f"failed to load {_quote_name(name)}, no worker has a bundle of that name")
    revision = await reader.set_repository(name, "loaded")
    fleet = await _wait_for_workers(reader, revision, f"load '{name}'")
    entries = [entry for entry in index(fleet, ready_only=False) if entry["name"] == name]
    failed = [entry for entry in entries if entry["state"] != "READY"]
    if len(failed) == len(entries):
        reasons = "; ".join(f"version {entry['version']}: {entry['reason'] or entry['state'].lower()}" for entry in failed)
        raise Problem(ProblemKind.INVALID_BODY, f"failed to load '{name}', {reasons}")


async def unload(name: str, reader: FleetReader) -> None:
    """Unload a bundle, until every living worker has followed and every gateway knows. Raises Problem: 404 for an unknown bundle, 503."""
    if not _knows(await reader.read(fresh=True), name):
        shown_name = _quote_name(name)
        raise Problem(ProblemKind.UNKNOWN_MODEL, f"failed to unload {shown_name}: Request for unknown model: {shown_name} is not found")
    revision = await reader.set_repository(name, "unloaded")
    await _wait_for_workers(reader, revision, f"unload '{name}'")


async def _wait_for_bundle(name: str, reader: FleetReader) -> bool:
    """Return whether a worker has a bundle of that name, or finds one soon: a folder may have been copied a moment ago."""
    until = time.monotonic() + (DISCOVERY_TIMEOUT_S if NAME_PATTERN.fullmatch(name) else 0)
    while not _knows(fleet := await reader.read(fresh=True), name):
        if time.monotonic() > until:
            if not fleet.workers:
                raise Problem(ProblemKind.NO_WORKER, f"failed to load {_quote_name(name)}: there is no worker", retry_after=5)
            return False
        await asyncio.sleep(POLL_INTERVAL_S)
    return True


def _knows(fleet: Fleet, name: str) -> bool:
    """Return whether a worker has this bundle, also one that cannot be read; False for a name that cannot be a bundle's."""
    return NAME_PATTERN.fullmatch(name) is not None and any(entry["name"] == name for entry in index(fleet, ready_only=False))


def _quote_name(name: str) -> str:
    return f"'{name[:MAX_QUOTED_CHARS]}'"


async def _wait_for_workers(reader: FleetReader, revision: int, action: str) -> Fleet:
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            while True:
                fleet = await reader.read(fresh=True)
                workers = living(fleet)
                if workers and all(worker.repository_revision >= revision for worker in workers):
                    await asyncio.sleep(DispatcherTimings().news)  # the maximum age of another gateway's view
                    return fleet
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError:
        raise Problem(
            ProblemKind.NO_WORKER, f"failed to {action}: not every worker has followed within {LOAD_TIMEOUT_S:g} s", retry_after=5
        ) from None


def _state(fleet: Fleet, bundle: ServedBundle) -> tuple[str, str]:
    if is_unloaded(fleet, bundle.name):
        return "UNAVAILABLE", "unloaded"
    spec = fleet.specs.get((bundle.name, bundle.version))
    if spec is None:
        return "UNAVAILABLE", bundle.reason
    state, reason = state_of(fleet, spec)
    return state.upper(), reason


def _is_same(origin: str, host: str) -> bool:
    """Return whether an Origin's host and port are those of the Host header, which leaves out the scheme's own port."""
    try:
        page, own_host = urlsplit(origin), urlsplit(f"//{host}")
        port = PORTS.get(page.scheme)
        return page.hostname is not None and (page.hostname, page.port or port) == (own_host.hostname, own_host.port or port)
    except ValueError:  # not an address
        return False
