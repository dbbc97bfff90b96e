"""Finding the model that a path names, and what the protocol says where there is none."""

from __future__ import annotations

from models.bundle import BundleSpec
from server.gateway import directory
from server.gateway.gateway import Gateway
from server.http.problems import Kind, Problem
from server.tasks.options import QUOTED
from server.tasks.registry import TASKS


async def find(here: Gateway, name: str, version: str | None) -> BundleSpec:
    """The bundle to run, of whatever task is served; waits for a worker as /v1 does. Raises Problem."""
    if "@" in name:  # our own way to name a version, not the protocol's
        raise unknown(name, version)
    try:
        spec = await here.directory.find(name if version is None else f"{name}@{version}", None)
    except Problem as problem:
        if problem.kind is not Kind.UNKNOWN_MODEL:
            raise
        is_unloaded = directory.is_unloaded(await here.directory.fleet(), name)
        raise (unloaded(name) if is_unloaded else unknown(name, version)) from problem
    if spec.task not in TASKS:
        raise unknown(name, version)
    return spec


def unknown(name: str, version: str | None) -> Problem:
    which = f"'{name[:QUOTED]}'" if version is None else f"'{name[:QUOTED]}' version {version[:QUOTED]}"
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: {which} is not found")


def unloaded(name: str) -> Problem:
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: '{name}' is not ready, it is unloaded")
