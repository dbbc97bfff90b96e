"""The meaning of a model's error for its device."""

from __future__ import annotations

import re

import torch

OUT_OF_MEMORY = re.compile(r"CUDA (error|failure \d+): out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Failed to allocate memory")
"""Texts of allocations outside of PyTorch's allocator, and of ONNX Runtime's."""
CUDA_FAILURE = re.compile(r"CUDA error|CUDA failure \d+|Triton Error \[CUDA\]")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def is_sticky(error: BaseException) -> bool:
    """Return whether CUDA may repeat the error whatever runs next, until the process ends."""
    return not is_out_of_memory(error) and CUDA_FAILURE.search(str(error)) is not None
