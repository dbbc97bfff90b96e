"""Check that Triton works on a machine: it compiles at run time, with a C compiler and Python's headers, and not for every GPU."""

from __future__ import annotations

import torch

from kernels.triton.merging import merge_backward

MIN_CAPABILITY = (8, 0)
"""Minimum compute capability: older GPUs do not have bfloat16, and have too little shared memory for the tiles."""


def check_triton(device: torch.device) -> None:
    """Run the kernel that compiles fastest, since it has no tiles to choose from. Raises RuntimeError or Triton's errors."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        raise RuntimeError(f"compute capability {capability[0]}.{capability[1]} is below {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}")
    with torch.inference_mode():
        first, size = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.full((1, 1, 1), 2.0, device=device)
        gradient = merge_backward(torch.ones(1, 1, 16, device=device), None, size, first, first + 1, first, 2)
        if not torch.equal(gradient, torch.full_like(gradient, 0.5)):
            raise RuntimeError("a kernel does not compute what the reference does")
