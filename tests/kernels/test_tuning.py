"""Choosing tile sizes while several threads launch kernels, as the two slots of a worker with a GPU do at its first batch."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kernels import progress

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux alone")

Timer = Callable[[Callable[[], Any]], None]


class CompiledKernel:
    """A kernel as Triton would compile it: there is no GPU to launch it on."""

    def __init__(self, names: list[str]) -> None:
        self.arg_names = names
        self.launches: list[tuple[int, int]] = []

    def run(self, _x: torch.Tensor, tokens: int, *, BLOCK: int, **_: Any) -> None:
        time.sleep(0.001)
        self.launches.append((tokens, BLOCK))


@pytest.fixture
def tuned() -> Iterator[Callable[[Timer], Any]]:
    """A kernel with two candidates, the choice of which takes what `timer` takes for each."""
    import triton

    from kernels.triton.autotune import autotune

    def make(timer: Timer) -> Any:
        @autotune([triton.Config({"BLOCK": block}) for block in (16, 32)], key=["tokens"], interpreted=triton.Config({"BLOCK": 16}))
        @triton.jit
        def kernel(x, tokens, BLOCK):  # type: ignore[no-untyped-def]
            pass

        def bench(call: Callable[[], Any], quantiles: object) -> list[float]:
            timer(call)
            return [1.0, 1.0, 1.0]

        tuner = kernel.tuner
        tuner.fn, tuner._do_bench, tuner.cache_results = CompiledKernel(tuner.fn.arg_names), bench, False
        return kernel

    yield make


def launch(kernel: Any, tokens: int) -> None:
    kernel[(1,)](torch.zeros(1, dtype=torch.bfloat16), tokens)


def test_two_threads_may_tune_one_kernel(tuned: Callable[[Timer], Any]) -> None:
    def slowly(call: Callable[[], Any]) -> None:
        call()
        time.sleep(0.01)

    kernel = tuned(slowly)
    failed: list[Exception] = []

    def slot(pause: float) -> None:
        for tokens in (64, 128, 256, 512):
            try:
                launch(kernel, tokens)
            except Exception as error:
                failed.append(error)
            time.sleep(pause)

    threads = [threading.Thread(target=slot, args=(pause,)) for pause in (0.004, 0.015)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_chosen_kernel_does_not_wait_for_a_compilation(tuned: Callable[[Timer], Any]) -> None:
    compiling, finish = threading.Event(), threading.Event()

    def wait(call: Callable[[], Any]) -> None:
        call()
        if compiling.is_set():
            assert finish.wait(20)

    kernel = tuned(wait)
    launch(kernel, 64)
    compiling.set()
    other = threading.Thread(target=launch, args=(kernel, 128))
    other.start()
    try:
        launched = threading.Thread(target=launch, args=(kernel, 64))
        launched.start()
        launched.join(10)
        assert not launched.is_alive(), "a launch waits for the lock that another size is compiled under"
    finally:
        finish.set()
        other.join()


def test_each_candidate_counts_as_progress(tuned: Callable[[Timer], Any]) -> None:
    silences: list[float] = []
    kernel = tuned(lambda call: silences.append(progress.silence()))
    launch(kernel, 64)
    assert len(silences) == 2
    assert all(silence < 5 for silence in silences)


def test_tiles_are_chosen_again_for_larger_batches() -> None:
    from kernels.triton.autotune import batch_bucket

    assert [batch_bucket(samples) for samples in (0, 1, 7, 8, 63, 64, 511, 512, 100_000)] == [16, 16, 16, 128, 128, 1024, 1024, 8192, 8192]
