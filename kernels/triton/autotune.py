"""Choice of the tile sizes of a kernel: timed once for each kind of GPU, dtype and size of input, and kept on disk."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from kernels import progress


class TunedKernel:
    """A kernel whose tile sizes are chosen once for each `key`. Any number of threads may launch it: only the choice takes a lock.

    Triton's tuner stores the arguments of a launch on itself, so that it may run in one thread at a time; a lock around every launch
    would let all threads wait while one compiles.
    """

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner
        self._choices: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self.run, grid=grid, warmup=False)

    def run(self, *arguments: Any, **options: Any) -> None:
        named = dict(zip(self.tuner.arg_names, arguments, strict=False)) | options
        dtypes = (value.dtype for value in arguments if isinstance(value, Tensor))
        key = (torch.cuda.current_device() if torch.cuda.is_available() else -1, *(named[name] for name in self.tuner.keys), *dtypes)
        choice = self._choices.get(key)
        if choice is None:
            with self._lock:
                self.tuner.run(*arguments, **options)
                self._choices[key] = self.tuner.best_config.all_kwargs()
            return
        self.tuner.fn.run(*arguments, **options, **choice)


def autotune(configs: Sequence[triton.Config], key: Sequence[str], interpreted: triton.Config) -> Callable[[Any], TunedKernel]:
    """Decorate a kernel with its candidates. key: arguments of the kernel that the choice depends on.

    interpreted: the choice for Triton's interpreter, in which nothing can be timed.
    """
    candidates = [interpreted] if knobs.runtime.interpret else list(configs)
    prune = {"early_config_prune": _fitting}
    wrap: Callable[[Any], Any] = triton.autotune(candidates, key=list(key), prune_configs_by=prune, cache_results=True)

    def decorate(kernel: Any) -> TunedKernel:
        tuner = wrap(kernel)
        tuner._bench = _noting_progress(tuner._bench)
        return TunedKernel(tuner)

    return decorate


def _noting_progress(bench: Callable[..., Any]) -> Callable[..., Any]:
    """Let each candidate count as progress: to compile and time them all can take longer than a worker may be silent."""

    def bench_candidate(*arguments: Any, **options: Any) -> Any:
        progress.note()
        return bench(*arguments, **options)

    return bench_candidate


def small(configs: Sequence[triton.Config]) -> list[triton.Config]:
    """Return candidates of at most 32 × 64: without tensor cores, larger products are unrolled into code that compiles for minutes."""
    return [config for config in configs if math.prod(config.kwargs.values()) <= 32 * 64]


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    model = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))  # that of the first tensor
    return small(configs) if model is torch.float32 else configs


def bucket(tokens: int) -> int:
    """Round up to a power of two: merging changes the number of tokens in every block, and not every number is timed."""
    return max(16, int(triton.next_power_of_2(tokens)))


def batch_bucket(samples: int) -> int:
    """Return 16, 128, 1024 or 8192 for up to 7, 63, 511 or more samples or heads: tiles that fill a GPU at one size do not at another.

    All are multiples of 16, since Triton compiles other integers again.
    """
    return int(16 * 8 ** min(3, (max(1, samples).bit_length() - 1) // 3))
