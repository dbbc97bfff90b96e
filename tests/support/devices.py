"""The devices that a test runs on: the CPU, and GPUs in `make test-gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def _gpu(name: str, index: int) -> Any:
    reason = f"torch sees {torch.cuda.device_count()} CUDA devices"
    return pytest.param(name, marks=[pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() <= index, reason=reason)])


DEVICES = ["cpu", _gpu("cuda", 0), _gpu("cuda:1", 1)]
