"""The device of a worker, the number of batches it runs at once, and the number of threads of each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.devices import HalfFormat, half_format, select_device
from server.processes.os_process import threads_allowed
from server.settings import Settings

MAX_SLOTS = 8
"""Maximum number of slots on a CPU: more would contend for the GIL."""
STATE_SHARE = 4
"""A quarter of the memory may hold states; all workers of a service share it."""
MODEL_SHARE = 2
"""Half of a GPU's memory may hold weights; all workers of a service share it."""
GPU_SLOTS = 2
"""One batch computes while the next is copied and launched."""


@dataclass(frozen=True)
class Layout:
    device: torch.device
    slots: int
    """Number of batches at once."""
    threads: int
    """Threads of a slot on the CPU, of torch and ONNX Runtime."""
    largest_batch: int
    state_bytes: int = sys.maxsize
    """Limit of the states that jobs of several steps keep between steps."""
    model_bytes: int = sys.maxsize
    """Limit of the weights in memory at the same time."""
    half: HalfFormat = "bfloat16"
    """The 16-bit format that the device computes in."""
    name: str = ""
    """Name of the device for operators: `cuda:1` even if other GPUs are hidden from this process."""

    @property
    def clock(self) -> Callable[[], float]:
        """Clock of a slot's work in seconds: CPU time if it computes in its own thread, so that waiting for a busy CPU does not count."""
        return time.thread_time if self.device.type == "cpu" and self.threads == 1 else time.monotonic


def choose_layout(settings: Settings) -> Layout:
    """Choose the layout of this process. Raises ValueError if the device or format is unusable.

    On a CPU two slots of one thread serve more than one slot of two threads (1.1 to 1.2 times for ViT-S/16 on two cores): a batch without
    barriers does not wait while the gateway uses its core for a few milliseconds. So no core is reserved for the gateway: the operating
    system gives it the time it needs, and a slot loses no more than that.
    """
    device, workers = select_device(settings.device), max(1, settings.workers)
    half = half_format(device)
    if settings.dtype not in ("auto", "float32", half):
        raise ValueError(f"dtype: {settings.dtype} is set, but {device} computes in auto, float32 or {half}")
    name = settings.device if ":" in settings.device else str(device)
    gpu = int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if gpu is None else gpu
    state_bytes = settings.state_bytes or memory // STATE_SHARE // workers
    model_bytes = settings.model_bytes or (sys.maxsize if gpu is None else gpu // MODEL_SHARE // workers)
    threads = settings.threads or threads_allowed(workers)
    slots = min(threads, MAX_SLOTS) if gpu is None else GPU_SLOTS
    return Layout(device, slots, max(1, threads // slots), 32 if gpu is None else 128, state_bytes, model_bytes, half, name)
