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


def autotune(configs: Sequence[triton.Config], key: Sequence[str], interpreted: triton.Config) -> Callable[[Any], Any]:
    """Decorate a kernel with its candidates. key: arguments of the kernel that the choice depends on.

    interpreted: the choice for Triton's interpreter, in which nothing can be timed. Any number of threads may launch the kernel.
    """
    candidates = [interpreted] if knobs.runtime.interpret else list(configs)
    prune = {"early_config_prune": _fitting}
    wrap: Callable[[Any], Any] = triton.autotune(candidates, key=list(key), prune_configs_by=prune, cache_results=True)

    def decorate(kernel: Any) -> Any:
        tuner = wrap(kernel)
        tuner.run = _one_at_a_time(tuner.run)
        return tuner

    return decorate


def _one_at_a_time(run: Callable[..., Any]) -> Callable[..., Any]:
    """Lock launches: Triton's tuner stores the arguments of a launch on itself, and loses them when another thread's launch ends."""
    lock = threading.Lock()

    def run_locked(*arguments: Any, **options: Any) -> Any:
        with lock:
            return run(*arguments, **options)

    return run_locked


def small(configs: Sequence[triton.Config]) -> list[triton.Config]:
    """Return candidates of at most 32 × 64: without tensor cores, larger products are unrolled into code that compiles for minutes."""
    return [config for config in configs if math.prod(config.kwargs.values()) <= 32 * 64]


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    model = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))  # that of the first tensor
    return small(configs) if model is torch.float32 else configs


def bucket(tokens: int) -> int:
    """Round up to a power of two: merging changes the number of tokens in every block, and not every number is timed."""
    return max(16, int(triton.next_power_of_2(tokens)))
