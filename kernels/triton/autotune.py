"""Choice of the tile sizes of a kernel: timed once for each kind of GPU, dtype and size of input, and kept on disk."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs


def tuned(configs: Sequence[triton.Config], key: Sequence[str], interpreted: triton.Config) -> Callable[[Any], Any]:
    """Decorate a kernel with its candidates. key: its arguments that a choice depends on.

    interpreted: what Triton's interpreter takes, where nothing can be timed. Any number of threads may launch the kernel.
    """
    candidates = [interpreted] if knobs.runtime.interpret else list(configs)
    prune = {"early_config_prune": _fitting}
    tune: Callable[[Any], Any] = triton.autotune(candidates, key=list(key), prune_configs_by=prune, cache_results=True)

    def decorate(kernel: Any) -> Any:
        tuner = tune(kernel)
        tuner.run = _one_at_a_time(tuner.run)
        return tuner

    return decorate


def _one_at_a_time(run: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's tuner keeps the arguments of a launch on itself, and loses them when another thread's launch ends."""
    lock = threading.Lock()

    def locked(*arguments: Any, **options: Any) -> Any:
        with lock:
            return run(*arguments, **options)

    return locked


def small(configs: Sequence[triton.Config]) -> list[triton.Config]:
    """The candidates of at most 32 × 64: without tensor cores, larger products are unrolled into code that compiles for minutes."""
    return [config for config in configs if math.prod(config.kwargs.values()) <= 32 * 64]


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    model = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))  # that of the first tensor
    return small(configs) if model is torch.float32 else configs


def bucket(tokens: int) -> int:
    """Power of two at or above a number of tokens: merging changes it in every block, and not each number is timed for itself."""
    return max(16, int(triton.next_power_of_2(tokens)))
