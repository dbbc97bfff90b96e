"""A worker's forward passes on a CUDA device. `make test-gpu` runs these; without a device they are skipped and say so."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.loading import load
from server.queue.worker.delivery import Delivery
from server.worker.backends.learned_cache import LearnedCache
from server.worker.backends.loading import Loader
from server.worker.backends.runner import Backends, ModelMemory
from server.worker.backends.verification import sample
from server.worker.device_layout import GPU_SLOTS, Layout
from server.worker.executors import ComputedBatch, OneShot
from tests.support.bundles.vit import write_tiny_vit
from tests.support.plain_model import Plain
from tests.support.queue import delivery

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

DEVICE = torch.device("cuda")
LAYOUT = Layout(DEVICE, slots=GPU_SLOTS, threads=1, largest_batch=8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path)


def jobs(count: int, seed: int = 0) -> list[Delivery]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [delivery(pixels=picture, merge=(4, 4)) for picture in pixels]


def cpu_logits(bundle: Bundle, deliveries: list[Delivery]) -> np.ndarray:
    """Return the answer of the CPU."""
    pixels = np.stack([job.job.arrays["pixels"].to_numpy() for job in deliveries])
    logits: np.ndarray = load(bundle).forward({"pixels": pixels}, {"merge": [4, 4]})["logits"]
    return logits


def answers(executor: OneShot, deliveries: list[Delivery]) -> np.ndarray:
    [computed] = executor.run(deliveries)
    assert isinstance(computed, ComputedBatch)
    return np.stack([answer.outputs["logits"] for answer in computed.answers])


def test_a_worker_answers_what_the_cpu_does(bundle: Bundle) -> None:
    ready = Loader(LAYOUT, "float32", LearnedCache(None), "auto").load(bundle)
    assert isinstance(ready.executor, OneShot)
    deliveries = jobs(5)
    np.testing.assert_allclose(answers(ready.executor, deliveries), cpu_logits(bundle, deliveries), rtol=1e-3, atol=1e-3)


def test_batches_in_both_slots_keep_to_themselves(bundle: Bundle) -> None:
    executor = OneShot(Plain(load(bundle, device=DEVICE)), DEVICE)
    batches = [jobs(8, seed) for seed in range(2 * 20)]
    found: dict[int, np.ndarray] = {}

    def slot(first: int) -> None:
        for number in range(first, len(batches), 2):
            found[number] = answers(executor, batches[number])

    threads = [threading.Thread(target=slot, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, batch in enumerate(batches):
        np.testing.assert_allclose(found[number], cpu_logits(bundle, batch), rtol=1e-3, atol=1e-3)


def test_weights_that_leave_memory_free_the_device(tmp_path: Path) -> None:
    memory = ModelMemory(1)
    one, two = (
        Backends(bundle, load(bundle, device=DEVICE), LAYOUT, "eager", memory=memory)
        for bundle in (write_tiny_vit(tmp_path, "one"), write_tiny_vit(tmp_path, "two"))
    )
    pictures = sample(one.spec, 2)
    before = one.forward(pictures, {"merge": [0, 0]})["logits"]
    two.forward(pictures, {"merge": [0, 0]})
    assert one.nbytes == 0 and all(parameter.is_meta for parameter in one.model.model.parameters())
    np.testing.assert_array_equal(one.forward(pictures, {"merge": [0, 0]})["logits"], before)
