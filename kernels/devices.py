"""The device of a process: which one it may use, the reason why there is none, and the meaning of a model's error for it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

DEVICE_FILES = Path("/dev")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
MIN_DRIVERS = {12: 525, 13: 580}
"""Oldest driver of Linux by major version of CUDA (NVIDIA's table of CUDA compatibility)."""
CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"

HalfFormat = Literal["bfloat16", "float16"]


def select_device(name: str) -> torch.device:
    """Return the device of this process: `auto`, `cpu`, `cuda` or `cuda:N`. Call it before anything else uses CUDA.

    Every other GPU is hidden: a thread that leaves a stream would otherwise open a context on the first one. Convolutions in float32 are
    exact from then on, as matrix products are. Raises ValueError."""
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "," in name or name == "cuda:all":
        raise ValueError(f"device: {name} is set, but a process uses one device; `opsin serve` starts a worker for each")
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    present = ", ".join(f"cuda:{index}" for index in range(count)) or "no CUDA device"
    if (device.index or 0) >= count:
        raise ValueError(f"device: {name} is set, but torch sees {present}{f'; {reason}' if (reason := missing_gpu_reason()) else ''}")
    if device.index is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device.index] if visible else str(device.index)
        device = torch.device("cuda") if torch.cuda.device_count() == 1 else device  # too late if the count has opened CUDA
    try:
        torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name} cannot be used: {str(error).partition(chr(10))[0]}; {missing_gpu_reason()}") from error
    return device


def half_format(device: torch.device) -> HalfFormat:
    """Return the 16-bit format that a device computes in. GPUs before compute capability 8.0 emulate bfloat16."""
    is_old = device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8
    return "float16" if is_old else "bfloat16"


def device_memory(device: torch.device) -> dict[str, int]:
    """Return bytes of a GPU by kind: in tensors, held by PyTorch, left free by all processes, and in all. Empty for a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }


def device_load(device: torch.device) -> dict[str, float]:
    """Return what the driver measures of a GPU: `utilization` (0 to 1), `watts` and `celsius`. Empty for a CPU, and without nvidia-ml-py.

    Quantities that a GPU does not report, such as the utilization of a part of one, are left out."""
    if device.type != "cuda":
        return {}
    readers = {
        "utilization": (torch.cuda.utilization, 0.01),
        "watts": (torch.cuda.power_draw, 0.001),
        "celsius": (torch.cuda.temperature, 1.0),
    }
    load: dict[str, float] = {}
    for quantity, (read, unit) in readers.items():
        with suppress(Exception):  # the only class that the errors of NVML, of its import and of torch have in common
            load[quantity] = read(device) * unit
    return load


def missing_gpu_reason() -> str:
    """Return why torch may not see a GPU of this machine; empty if the machine has none."""
    if not any(DEVICE_FILES.glob("nvidia[0-9]*")):
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    found = re.search(r"\s(\d{3,})\.\d+", DRIVER_VERSION.read_text()) if DRIVER_VERSION.exists() else None
    driver, oldest = found[0].strip() if found else "unknown", MIN_DRIVERS.get(int(torch.version.cuda.split(".")[0]), 0)
    if found and int(found[1]) < oldest:
        needed = f"driver {driver} is too old for torch {torch.__version__} with CUDA {torch.version.cuda}, which needs {oldest}"
        return f"{needed}: update it, or install torch from {CUDA_12_INDEX}"
    return f"driver {driver}, torch {torch.__version__} with CUDA {torch.version.cuda}"


OUT_OF_MEMORY = re.compile(
    r"CUDA (error|failure \d+): out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Failed to allocate memory|can't allocate memory"
)
"""Texts of allocations outside of PyTorch's allocator, of ONNX Runtime's, and of PyTorch's on a CPU."""
CUDA_FAILURE = re.compile(r"CUDA error|CUDA failure \d+|Triton Error \[CUDA\]")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def is_sticky(error: BaseException) -> bool:
    """Return whether CUDA may repeat the error whatever runs next, until the process ends."""
    return not is_out_of_memory(error) and CUDA_FAILURE.search(str(error)) is not None
