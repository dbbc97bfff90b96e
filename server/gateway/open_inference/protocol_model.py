"""Bundles as models of the protocol: found by name, with their tensors, their options, and the documents about them.

perf_analyzer reads every field of the statistics and gives up on a model whose version it does not find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec

from models.bundle import BundleSpec
from server.gateway import model_directory
from server.gateway.app_state import GatewayState
from server.gateway.open_inference.tensors import InferRequest
from server.http.problems import Problem, ProblemKind
from server.quote import MAX_QUOTED_CHARS, quote
from server.settings import ModelControl
from server.tasks.base import OffersTensors, RequestPart, Task, Tensor, accepted_parts
from server.tasks.embedding.zero_shot import ZeroShotTask
from server.tasks.options import InvalidOption, RequestOptions, option_rows
from server.tasks.registry import TASKS, main_task, route_name


@dataclass(frozen=True)
class ProtocolModel:
    """A bundle as the protocol sees it."""

    task: Task[Any, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    parts: Mapping[str, RequestPart]

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
                detail = f"true: no output tensor has it; leave it out, or use POST /v1/{route_name(self.task)}"
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
        elsewhere = "" if task is None else f"; POST /v1/{route_name(task)} serves it"
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


EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "parameters",
    "schedule_policy",
    "model_configuration",
    "statistics",
)
MODEL_CONTROL_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")
REQUEST_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
BATCH_PARTS = ("compute_input", "compute_infer", "compute_output")


def server_metadata(model_control: ModelControl) -> dict[str, Any]:
    """Return the server's metadata. Loading and unloading are advertised only if they are allowed."""
    extensions = EXTENSIONS + (MODEL_CONTROL_EXTENSIONS if model_control == "explicit" else ())
    return {"name": "opsin", "version": version("opsin"), "extensions": list(extensions)}


def model_metadata(spec: BundleSpec, versions: Sequence[str]) -> dict[str, Any]:
    """Return a model's metadata. Shapes have the batch in front, -1."""
    offered = protocol_model(spec)
    return {
        "name": spec.name,
        "versions": list(versions),
        "platform": _platform(spec),
        "inputs": [_metadata(tensor) for tensor in offered.inputs],
        "outputs": [_metadata(tensor) for tensor in offered.outputs],
    }


def model_config(spec: BundleSpec, max_batch_size: int) -> dict[str, Any]:
    """Return Triton's `ModelConfig`: `dims` without the batch, all of fixed length, which perf_analyzer needs.

    The bundle's note is a parameter."""
    offered = protocol_model(spec)
    return {
        "name": spec.name,
        "platform": _platform(spec),
        "backend": "opsin",
        "version_policy": {"specific": {"versions": [spec.version]}},
        "max_batch_size": max_batch_size,
        "input": [_config(tensor) for tensor in offered.inputs],
        "output": [_config(tensor) for tensor in offered.outputs],
        "dynamic_batching": {},
        "parameters": {"note": {"string_value": spec.note}} if spec.note else {},
    }


def model_statistics(spec: BundleSpec, counters: Mapping[str, int]) -> dict[str, Any]:
    """Return statistics by the finish script's counters: `<part>_count`, `<part>_ns`, `batch:<size>:count`, `batch:<size>:<part>_ns`."""
    sizes = sorted(int(name.split(":")[1]) for name in counters if name.startswith("batch:") and name.endswith(":count"))
    return {
        "name": spec.name,
        "version": spec.version,
        "last_inference": counters.get("last_inference", 0),
        "inference_count": counters.get("inference_count", 0),
        "execution_count": counters.get("execution_count", 0),
        "inference_stats": {part: {kind: counters.get(f"{part}_{kind}", 0) for kind in ("count", "ns")} for part in REQUEST_PARTS},
        "batch_stats": [_batch(size, counters) for size in sizes],
        "response_stats": {},
        "memory_usage": [],
    }


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.dims]}


def _config(tensor: Tensor) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(tensor.dims)}


def _platform(spec: BundleSpec) -> str:
    return f"pytorch_{spec.architecture}"


def _batch(size: int, counters: Mapping[str, int]) -> dict[str, Any]:
    count = counters[f"batch:{size}:count"]
    return {"batch_size": size, **{part: {"count": count, "ns": counters.get(f"batch:{size}:{part}_ns", 0)} for part in BATCH_PARTS}}
