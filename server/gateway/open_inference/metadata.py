"""Documents of the protocol about the server and a model: metadata, and Triton's model configuration and statistics.

perf_analyzer reads every field of the statistics and gives up on a model whose version it does not find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from models.bundle import BundleSpec
from server.gateway.open_inference import protocol_model
from server.settings import ModelControl
from server.tasks.base import Tensor

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
    offered = protocol_model.protocol_model(spec)
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
    offered = protocol_model.protocol_model(spec)
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
