"""What the protocol says of the server and of a model: metadata and Triton's model configuration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from models.bundle import BundleSpec
from server.gateway.open_inference import offer
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


def server_metadata(model_control: ModelControl) -> dict[str, Any]:
    """Loading and unloading are advertised only where they are allowed."""
    extensions = EXTENSIONS + (MODEL_CONTROL_EXTENSIONS if model_control == "explicit" else ())
    return {"name": "opsin", "version": version("opsin"), "extensions": list(extensions)}


def model_metadata(spec: BundleSpec, versions: Sequence[str]) -> dict[str, Any]:
    """Shapes with the batch in front, -1."""
    offered = offer.of(spec)
    return {
        "name": spec.name,
        "versions": list(versions),
        "platform": _platform(spec),
        "inputs": [_metadata(tensor) for tensor in offered.inputs],
        "outputs": [_metadata(tensor) for tensor in offered.outputs],
    }


def model_config(spec: BundleSpec, max_batch_size: int) -> dict[str, Any]:
    """As Triton's `ModelConfig`: `dims` without the batch. No length of any dimension is open, which perf_analyzer needs."""
    offered = offer.of(spec)
    return {
        "name": spec.name,
        "platform": _platform(spec),
        "backend": "opsin",
        "version_policy": {"specific": {"versions": [spec.version]}},
        "max_batch_size": max_batch_size,
        "input": [_config(tensor) for tensor in offered.inputs],
        "output": [_config(tensor) for tensor in offered.outputs],
        "dynamic_batching": {},
    }


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.dims]}


def _config(tensor: Tensor) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(tensor.dims)}


def _platform(spec: BundleSpec) -> str:
    return f"pytorch_{spec.architecture}"
