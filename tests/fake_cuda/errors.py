"""Errors of a CUDA device, raised to order."""

from __future__ import annotations

import os

import torch

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


def raise_ordered(corners: list[tuple[int, ...]]) -> None:
    """Raise the error that the environment orders, if an image has a red corner, or had one before."""
    if RED in corners and (order := os.environ.get(ORDER_VARIABLE)):
        _broken.append(ERRORS[order])
    if _broken:
        raise _broken[0]
