"""Cards and a driver that torch seems to see, and their errors, raised to order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import devices
from server.worker.executors import Streams

GIB = 2**30
ORDER_VARIABLE = "FAKE_CUDA_ERROR"
"""Environment variable: name of the error that every forward pass raises from the first image with a red corner on."""
RED = (255, 0, 0)
ERRORS = {
    "illegal access": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
    "Triton": RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    "ONNX Runtime": Exception("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=…"),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "out of memory elsewhere": torch.AcceleratorError("CUDA error: out of memory"),
    "cuBLAS out of memory": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
STICKY = ("illegal access", "cuBLAS", "Triton", "ONNX Runtime")
"""Errors after which a device is of no use to its process."""

_broken: list[Exception] = []


def _gpu(name: str, index: int) -> Any:
    reason = f"torch sees {torch.cuda.device_count()} CUDA devices"
    return pytest.param(name, marks=[pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() <= index, reason=reason)])


DEVICES = ["cpu", _gpu("cuda", 0), _gpu("cuda:1", 1)]
"""Devices of tests that run on the CPU in `make test`, and on GPUs in `make test-gpu`."""


@dataclass
class FakeCuda:
    count: int = 1
    """Number of cards before CUDA_VISIBLE_DEVICES hides some."""
    capability: tuple[int, int] = (9, 0)
    total_memory: int = 80 * GIB
    driver: str = "580.65.06"
    cuda: str | None = "13.0"
    """Version of CUDA that torch is built for."""
    start_error: str = ""
    """Error of everything that starts CUDA; empty for none."""
    allocated: int = GIB
    reserved: int = 2 * GIB
    streams_used: list[object] = field(default_factory=list)
    """The stream of each block that ran on one."""

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeCuda:
        """Replace what torch and the system say of cards. folder: an empty one."""
        for index in range(self.count):
            folder.joinpath(f"nvidia{index}").touch()
        folder.joinpath("version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {self.driver}  Sun Jul 27 2025\n")
        monkeypatch.setattr(devices, "DEVICE_FILES", folder)
        monkeypatch.setattr(devices, "DRIVER_VERSION", folder / "version")
        monkeypatch.setattr(torch.version, "cuda", self.cuda)
        monkeypatch.setattr(Streams, "_free", LifoQueue())
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))  # is put back after the test
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        for name in ("device_count", "get_device_properties", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.total_memory - self.reserved, self.total_memory))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.reserved)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: not self.start_error and self.device_count() > 0)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
        return self

    def device_count(self) -> int:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.count if visible is None else len([one for one in visible.split(",") if one])

    def get_device_properties(self, device: object) -> SimpleNamespace:
        if self.start_error:
            raise RuntimeError(self.start_error)
        major, minor = self.capability
        return SimpleNamespace(name="Fake GPU", total_memory=self.total_memory, major=major, minor=minor)

    @contextmanager
    def stream(self, one: object) -> Iterator[None]:
        self.streams_used.append(one)
        yield


def raise_ordered(corners: list[tuple[int, ...]], device: torch.device) -> None:
    """Cause the error that the environment orders, if an image has a red corner; a broken device stays broken. On a real GPU, CUDA raises
    it. Of lack of memory, one red image fits, and two do not."""
    order = os.environ.get(ORDER_VARIABLE, "")
    if order in STICKY and RED in corners:
        if device.type == "cuda":
            torch.zeros(1, device=device)[torch.ones(1, dtype=torch.int64, device=device)].item()
        _broken.append(ERRORS[order])
    if _broken:
        raise _broken[0]
    if order == "out of memory" and device.type == "cuda":
        torch.empty(int(corners.count(RED) * 0.6 * torch.cuda.get_device_properties(device).total_memory), dtype=torch.uint8, device=device)
    elif order and corners.count(RED) > 1:
        raise ERRORS[order]


class StreamTracker(TorchDispatchMode):
    """The streams that make, read and keep each tensor. A tensor that another stream has read must be kept for it: that stream's thread
    may drop it while the read is still queued."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = 0
        """The current stream."""
        self._made: dict[int, int] = {}
        """The stream of each storage that was made here, by address."""
        self._read: set[tuple[int, int]] = set()
        """Storages and foreign streams that have read them."""
        self._retained: set[tuple[int, int]] = set()
        self._alive: list[torch.Tensor] = []
        """All tensors, so that no address is used twice."""

    def keep(self, tensor: torch.Tensor) -> None:
        self._retained.add((tensor.untyped_storage().data_ptr(), self.stream))

    @property
    def unkept(self) -> set[tuple[int, int]]:
        """Storages that a stream has read without keeping them."""
        return self._read - self._retained

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves((args, kwargs))):
            address = tensor.untyped_storage().data_ptr()
            if address and self._made.get(address, self.stream) != self.stream:  # 0: an empty tensor
                self._read.add((address, self.stream))
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            self._made.setdefault(tensor.untyped_storage().data_ptr(), self.stream)
            self._alive.append(tensor)
        return made
