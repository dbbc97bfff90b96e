"""Models as the protocol offers them: found by name, their tensors, and their options among a request's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from models.bundle import BundleSpec
from server.gateway.app_state import Gateway
from server.gateway.catalog import model_directory
from server.gateway.open_inference.tensors import InferRequest
from server.http.problems import Kind, Problem
from server.quote import MAX_QUOTED_CHARS, quote
from server.tasks.base import RequestPart, Task, Tensor
from server.tasks.capabilities import OffersTensors, accepted_parts
from server.tasks.embedding.zero_shot import ZeroShotTask
from server.tasks.options import InvalidOption, RequestOptions, option_rows
from server.tasks.registry import TASKS, main_task, route_of


@dataclass(frozen=True)
class Offer:
    """A bundle as the protocol sees it."""

    task: Task[Any, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    parts: Mapping[str, RequestPart]
    """The parts of the inputs, by name."""

    def read_options(self, parameters: Mapping[str, Any]) -> RequestOptions:
        """The task's options; other parameters are the protocol's own or ignored, as it demands. Raises Problem."""
        given = {}
        for row in option_rows(self.task.options):
            value = parameters.get(f"{row.name}s") if row.repeated else parameters.get(row.name)
            if value is None:
                continue
            try:
                given[row.name] = row.read(_listed(row.name, value) if row.repeated else [value])
            except InvalidOption as error:
                raise Problem(Kind.INVALID_OPTION, str(error), error.field) from error
        for name in self.task.options_without_tensor if isinstance(self.task, OffersTensors) else ():
            if given.get(name):
                detail = f"true: no output tensor has it; POST /v1/{route_of(self.task)} answers it, here leave it out"
                raise Problem(Kind.INVALID_OPTION, detail, name)
        options: RequestOptions = self.task.options(**given)
        return options


def of(spec: BundleSpec, asked: InferRequest | None = None) -> Offer:
    """Raises Problem (404) for a task that is not offered in the protocol.

    asked: None: whatever may be asked. A pair that is asked for no scores of labels answers vectors alone."""
    task = main_task(spec)
    if isinstance(task, ZeroShotTask) and asked is not None:
        wants_scores = "labels" in asked.parameters or any(output.name == "scores" for output in asked.outputs)
        task = task if wants_scores else TASKS["embed"]
    if not isinstance(task, OffersTensors):
        elsewhere = "" if task is None else f"; POST /v1/{route_of(task)} serves it"
        raise Problem(
            Kind.UNKNOWN_MODEL, f"Request for unknown model: '{spec.name}' is for {spec.task}, which is not offered here{elsewhere}"
        )
    inputs, outputs = task.tensors(spec)
    parts = {part.name: part for part in accepted_parts(task, spec)}
    taken = inputs if asked is None else [declared for declared in inputs if declared.name in parts]
    return Offer(task, taken, outputs, parts)


def _listed(name: str, value: object) -> list[object]:
    """A list that stands as JSON in a string, since parameters are scalars. Raises InvalidOption."""
    try:
        listed = msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise InvalidOption(f"{name}s", f'{quote(value)} must be a JSON array in a string, such as ["a dog", "a cat"]')
    return listed


async def find(here: Gateway, name: str, version: str | None) -> BundleSpec:
    """The bundle to run, of whatever task is served; waits for a worker as /v1 does. Raises Problem."""
    if "@" in name:  # our own way to name a version, not the protocol's
        raise unknown(name, version)
    try:
        spec = await here.directory.find(name if version is None else f"{name}@{version}", None)
    except Problem as problem:
        if problem.kind is not Kind.UNKNOWN_MODEL:
            raise
        is_unloaded = model_directory.is_unloaded(await here.directory.fleet(), name)
        raise (unloaded(name) if is_unloaded else unknown(name, version)) from problem
    if main_task(spec) is None:
        raise unknown(name, version)
    return spec


def unknown(name: str, version: str | None) -> Problem:
    which = f"'{name[:MAX_QUOTED_CHARS]}'" if version is None else f"'{name[:MAX_QUOTED_CHARS]}' version {version[:MAX_QUOTED_CHARS]}"
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: {which} is not found")


def unloaded(name: str) -> Problem:
    return Problem(Kind.UNKNOWN_MODEL, f"Request for unknown model: '{name}' is not ready, it is unloaded")
