"""Choosing tile sizes while several threads launch kernels, as the two slots of a worker with a GPU do at its first batch."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux alone")


def test_two_threads_may_tune_one_kernel() -> None:
    import triton

    from kernels.triton.autotune import autotune

    @autotune([triton.Config({"BLOCK": block}) for block in (16, 32)], key=["tokens"], interpreted=triton.Config({"BLOCK": 16}))
    @triton.jit
    def kernel(x, tokens, BLOCK):  # type: ignore[no-untyped-def]
        pass

    class Compiled:
        """What Triton would compile: there is no GPU to launch it on."""

        arg_names = kernel.arg_names

        def run(self, *arguments: Any, **options: Any) -> None:
            time.sleep(0.001)

    def timed(call: Callable[[], Any], quantiles: object) -> list[float]:
        call()
        time.sleep(0.01)
        return [1.0, 1.0, 1.0]

    kernel.fn, kernel._do_bench, kernel.cache_results = Compiled(), timed, False
    failed: list[Exception] = []

    def slot(pause: float) -> None:
        for tokens in (64, 128, 256, 512):
            try:
                kernel[(1,)](torch.zeros(1, dtype=torch.bfloat16), tokens)
            except Exception as error:
                failed.append(error)
            time.sleep(pause)

    threads = [threading.Thread(target=slot, args=(pause,)) for pause in (0.004, 0.015)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
