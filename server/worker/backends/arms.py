"""The ways in which a batch can be computed, and which of them answer alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Backend = Literal["eager", "fused", "onnx", "int8"]
"""The names that operators read and set."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)
BackendSetting = Literal["auto", "eager", "fused", "onnx", "int8"]

Arm = Literal["eager", "fused", "onnx", "bfloat16", "float16", "int8"]
"""A backend with a number format: `eager` and `fused` have the format in which the bundle was loaded, `bfloat16` and
`float16` are `eager` in these."""

Format = Literal["float32", "bfloat16", "float16"]
"""Number formats of PyTorch."""
Kind = Literal["float32", "graph", "bfloat16", "float16", "int8"]
"""Arms of one kind give the same answers. `graph` is ONNX Runtime in float32 if tokens merge: of two that are almost equally similar it may
merge the other one."""

Schedule = tuple[int, ...]
"""Number of tokens that merge in each block."""

HANDICAPS: Mapping[Arm, float] = {"eager": 1.0, "fused": 1.02, "onnx": 1.05, "bfloat16": 1.11, "float16": 1.11, "int8": 1.3}
"""Factor by which an arm's seconds are multiplied before they are compared: a gain below it is noise, or is not worth the accuracy."""
USUAL_ORDER: Sequence[Arm] = ("int8", "bfloat16", "float16", "onnx", "fused", "eager")
"""Arms in the order of their usual gain on a CPU. A GPU has `eager` and its 16-bit format alone."""


def kind_of(arm: Arm, schedule: Schedule, loaded: Format = "float32") -> Kind:
    """Return the kind of an arm's answers. loaded: format of `eager` and `fused`."""
    return "graph" if arm == "onnx" and (any(schedule) or loaded != "float32") else format_of(arm, loaded)


def backend_of(arm: Arm) -> Backend:
    """Return the backend that an arm is reported as."""
    return next((backend for backend in BACKENDS if backend == arm), "eager")


def format_of(arm: Arm, loaded: Format) -> Format | Literal["int8"]:
    """Return the number format of an arm's matrices."""
    match arm:
        case "onnx":
            return "float32"
        case "eager" | "fused":
            return loaded
    return arm
