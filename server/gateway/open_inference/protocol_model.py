"""Bundles as models of the protocol: found by name, with their tensors, and their options among a request's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from models.bundle import BundleSpec
from server.gateway.app_state import GatewayState
from server.gateway.catalog import model_directory
from server.gateway.open_inference.tensors import InferRequest
from server.http.problems import Problem, ProblemKind
from server.quote import MAX_QUOTED_CHARS, quote
from server.tasks.base import OffersTensors, RequestPart, Task, Tensor, accepted_parts
from server.tasks.embedding.zero_shot import ZeroShotTask
from server.tasks.options import InvalidOption, RequestOptions, option_rows
from server.tasks.registry import TASKS, main_task, route_of


@dataclass(frozen=True)
class ProtocolModel:
    """A bundle as the protocol sees it."""

    task: Task[Any, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    parts: Mapping[str, RequestPart]
    """Parts of the inputs, by name."""

    def read_options(self, parameters: Mapping[str, Any]) -> RequestOptions:
        """Read the task's options; other parameters are the protocol's own or ignored, as it demands. Raises Problem."""
        values = {}
        for row in option_rows(self.task.options):
            value = parameters.get(f"{row.name}s") if row.repeated else parameters.get(row.name)
            if value is None:
                continue
            try:
                values[row.name] = row.read(_parse_list(row.name, value) if row.repeated else [value])
            except InvalidOption as error:
                raise Problem(ProblemKind.INVALID_OPTION, str(error), error.field) from error
        for name in self.task.options_without_tensor if isinstance(self.task, OffersTensors) else ():
            if values.get(name):
                detail = f"true: no output tensor has it; leave it out, or use POST /v1/{route_of(self.task)}"
                raise Problem(ProblemKind.INVALID_OPTION, detail, name)
        options: RequestOptions = self.task.options(**values)
        return options


def protocol_model(spec: BundleSpec, request: InferRequest | None = None) -> ProtocolModel:
    """Return the model of a bundle. Raises Problem (404) for a task that is not offered in the protocol.

    request: None for any request. A pair without a request for scores of labels answers vectors alone."""
    task = main_task(spec)
    if isinstance(task, ZeroShotTask) and request is not None:
        wants_scores = "labels" in request.parameters or any(output.name == "scores" for output in request.outputs)
        task = task if wants_scores else TASKS["embed"]
    if not isinstance(task, OffersTensors):
        elsewhere = "" if task is None else f"; POST /v1/{route_of(task)} serves it"
        raise Problem(
            ProblemKind.UNKNOWN_MODEL,
            f"Request for unknown model: '{spec.name}' is for {spec.task}, which this protocol does not offer{elsewhere}",
        )
    inputs, outputs = task.tensors(spec)
    parts = {part.name: part for part in accepted_parts(task, spec)}
    taken = inputs if request is None else [declared for declared in inputs if declared.name in parts]
    return ProtocolModel(task, taken, outputs, parts)


def _parse_list(name: str, value: object) -> list[object]:
    """Parse a list, given as JSON in a string, since parameters are scalars. Raises InvalidOption."""
    try:
        listed = msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise InvalidOption(f"{name}s", f'{quote(value)} must be a JSON array in a string, such as ["a dog", "a cat"]')
    return listed


async def find(gateway: GatewayState, name: str, version: str | None) -> BundleSpec:
    """Find the bundle to run, of any served task; waits for a worker as /v1 does. Raises Problem."""
    if "@" in name:  # Opsin's way to name a version, not the protocol's
        raise unknown_model(name, version)
    try:
        spec = await gateway.directory.find(name if version is None else f"{name}@{version}", None)
    except Problem as problem:
        if problem.kind is not ProblemKind.UNKNOWN_MODEL:
            raise
        is_unloaded = model_directory.is_unloaded(await gateway.directory.fleet(), name)
        raise (unloaded_model(name) if is_unloaded else unknown_model(name, version)) from problem
    if main_task(spec) is None:
        raise unknown_model(name, version)
    return spec


def unknown_model(name: str, version: str | None) -> Problem:
    model = f"'{name[:MAX_QUOTED_CHARS]}'" if version is None else f"'{name[:MAX_QUOTED_CHARS]}' version {version[:MAX_QUOTED_CHARS]}"
    return Problem(ProblemKind.UNKNOWN_MODEL, f"Request for unknown model: {model} is not found")


def unloaded_model(name: str) -> Problem:
    return Problem(ProblemKind.UNKNOWN_MODEL, f"Request for unknown model: '{name}' is not ready, it is unloaded")
