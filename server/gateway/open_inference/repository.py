"""The model repository: which bundles there are, and loading and unloading them in every worker.

What operators want is a hash in Redis, so all gateways agree on it and workers that start later obey. Only names that a worker has
announced are written into it. Each change of it has a number, and a worker announces the number that its bundles are in line with: that
is how a gateway knows that all have followed.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from starlette.requests import Request

from models.bundle import NAME_PATTERN
from server.gateway.auth.middleware import require
from server.gateway.catalog.model_directory import is_unloaded, state_of, version_order
from server.http.problems import Kind, Problem
from server.queue.gateway.dispatcher import DispatcherTimings
from server.queue.gateway.fleet import Fleet, FleetReader
from server.queue.messages import ServedBundle
from server.quote import MAX_QUOTED_CHARS, quote
from server.settings import Settings

POLL = 0.1
PATIENCE = 120.0
"""Seconds that workers may take to load a bundle. One that takes longer goes on; only the client's call ends."""
DISCOVERY = 3.0
"""Seconds in which an idle worker finds and announces a new folder: it looks every second."""
PORTS = {"http": 80, "https": 443}


def check_allowed(request: Request, settings: Settings) -> None:
    """Nobody may load and unload bundles unless the operator allows it, where there are API keys to whoever asks, and a web page from
    elsewhere never. Raises Problem (403).

    Browsers name the page's origin in `Origin`; other clients send none."""
    host = request.headers.get("host", "")
    for origin in request.headers.getlist("origin"):
        if not _is_same(origin, host):
            raise Problem(Kind.MODEL_CONTROL, f"web pages of another origin ({quote(origin)}) never may load or unload models")
    if settings.model_control != "explicit":
        raise Problem(Kind.MODEL_CONTROL, "loading and unloading models is off; the operator turns it on with OPSIN_MODEL_CONTROL=explicit")
    require("admin", request)


def index(fleet: Fleet, *, ready_only: bool) -> list[dict[str, str]]:
    """Every bundle folder that a worker knows, also one that cannot be read."""
    announced = {(bundle.name, bundle.version): bundle for worker in fleet.workers for bundle in worker.bundles}
    entries = []
    for (name, version), bundle in sorted(announced.items(), key=lambda item: (item[0][0], version_order(item[0][1]))):
        state, reason = _state(fleet, bundle)
        if state == "READY" or not ready_only:
            entries.append({"name": name, "version": version, "state": state, "reason": reason})
    return entries


async def load(name: str, reader: FleetReader) -> None:
    """Returns when every living worker has looked at the bundle and one serves it. Raises Problem: 400 with the reason, 503."""
    if not await _appears(name, reader):
        raise Problem(Kind.INVALID_BODY, f"failed to load {_quoted(name)}, no worker has a bundle of that name")
    revision = await reader.set_repository(name, "loaded")
    fleet = await _followed(reader, revision, f"load '{name}'")
    entries = [entry for entry in index(fleet, ready_only=False) if entry["name"] == name]
    failed = [entry for entry in entries if entry["state"] != "READY"]
    if len(failed) == len(entries):
        reasons = "; ".join(f"version {entry['version']}: {entry['reason'] or entry['state'].lower()}" for entry in failed)
        raise Problem(Kind.INVALID_BODY, f"failed to load '{name}', {reasons}")


async def unload(name: str, reader: FleetReader) -> None:
    """Returns when every living worker has followed and every gateway knows. Raises Problem: 404 for an unknown bundle, 503."""
    if not _knows(await reader.read(fresh=True), name):
        shown = _quoted(name)
        raise Problem(Kind.UNKNOWN_MODEL, f"failed to unload {shown}: Request for unknown model: {shown} is not found")
    revision = await reader.set_repository(name, "unloaded")
    await _followed(reader, revision, f"unload '{name}'")


async def _appears(name: str, reader: FleetReader) -> bool:
    """Whether a worker has a bundle of that name, or finds one soon: a folder may have been copied a moment ago."""
    until = time.monotonic() + (DISCOVERY if NAME_PATTERN.fullmatch(name) else 0)
    while not _knows(fleet := await reader.read(fresh=True), name):
        if time.monotonic() > until:
            if not fleet.workers:
                raise Problem(Kind.NO_WORKER, f"failed to load {_quoted(name)}: no worker is there", retry_after=5)
            return False
        await asyncio.sleep(POLL)
    return True


def _knows(fleet: Fleet, name: str) -> bool:
    """Also bundles that cannot be read, but no name that could not be a bundle's."""
    return NAME_PATTERN.fullmatch(name) is not None and any(entry["name"] == name for entry in index(fleet, ready_only=False))


def _quoted(name: str) -> str:
    return f"'{name[:MAX_QUOTED_CHARS]}'"


async def _followed(reader: FleetReader, revision: int, what: str) -> Fleet:
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                fleet = await reader.read(fresh=True)
                living = [worker for worker in fleet.workers if worker.state != "draining"]
                if living and all(worker.repository_revision >= revision for worker in living):
                    await asyncio.sleep(DispatcherTimings().news)  # how old another gateway's view may be
                    return fleet
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise Problem(Kind.NO_WORKER, f"failed to {what}: not every worker has followed within {PATIENCE:g} s", retry_after=5) from None


def _state(fleet: Fleet, bundle: ServedBundle) -> tuple[str, str]:
    if is_unloaded(fleet, bundle.name):
        return "UNAVAILABLE", "unloaded"
    spec = fleet.specs.get((bundle.name, bundle.version))
    if spec is None:
        return "UNAVAILABLE", bundle.reason
    state, reason = state_of(fleet, spec)
    return state.upper(), reason


def _is_same(origin: str, host: str) -> bool:
    """Whether an Origin's host and port are those of the Host header, which leaves out the scheme's own port."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        port = PORTS.get(page.scheme)
        return page.hostname is not None and (page.hostname, page.port or port) == (here.hostname, here.port or port)
    except ValueError:  # no address
        return False
