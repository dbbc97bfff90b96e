"""What the protocol says of the server and of a model: metadata and Triton's model configuration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from models.bundle import BundleSpec
from server.gateway.open_inference.classify import IMAGE, LABELS, SCORES, label_count
from server.settings import ModelControl

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
    return {
        "name": spec.name,
        "versions": list(versions),
        "platform": _platform(spec),
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [
            {"name": SCORES, "datatype": "FP32", "shape": [-1, len(spec.labels)]},
            {"name": LABELS, "datatype": "BYTES", "shape": [-1, label_count(spec)]},
        ],
    }


def model_config(spec: BundleSpec, max_batch_size: int) -> dict[str, Any]:
    """As Triton's `ModelConfig`: `dims` without the batch. No length of any dimension is open, which perf_analyzer needs."""
    return {
        "name": spec.name,
        "platform": _platform(spec),
        "backend": "opsin",
        "version_policy": {"specific": {"versions": [spec.version]}},
        "max_batch_size": max_batch_size,
        "input": [{"name": IMAGE, "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [
            {"name": SCORES, "data_type": "TYPE_FP32", "dims": [len(spec.labels)]},
            {"name": LABELS, "data_type": "TYPE_STRING", "dims": [label_count(spec)]},
        ],
        "dynamic_batching": {},
    }


def _platform(spec: BundleSpec) -> str:
    return f"pytorch_{spec.architecture}"
