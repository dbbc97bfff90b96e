"""The files of a request stay with the gateway that presents its answer; those of a job that outlives it travel with its arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from server.queue.messages import Array, QueuedJob, Reply, WorkerTiming
from tests.support.bundles.vit import write_tiny_diffmae
from tests.support.fake_worker import Worker
from tests.support.gateway_process import gateway_process
from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.job_api import accepted_id, comes_to, result
from tests.support.redis import private_valkey

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
FILES = {"image": ("image", encode(IMAGE)), "mask": ("mask", box_mask(40, 60, HOLE))}


def black(job: QueuedJob) -> Reply:
    """Return a worker's answer: black holes, and the arrays that the job wants returned."""
    filled = np.where(job.arrays["missing"].to_numpy()[..., np.newaxis] > 0, 0, job.arrays["pixels"].to_numpy()).astype(np.uint8)
    returned = {name: job.arrays[name] for name in ("box", *job.options["returned"])}
    timing = WorkerTiming(batch_wait_ms=1.0, inference_ms=1.0, worker_ms=3.0, batch_size=1)
    return Reply(id=job.id, worker="test", arrays={"filled": Array.from_numpy(filled[np.newaxis]), **returned}, timing=timing)


def test_files_are_sent_only_if_presented_elsewhere(tmp_path: Path) -> None:
    spec = write_tiny_diffmae(tmp_path).spec
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway, Worker(valkey.url, [spec], answer=black) as worker:
        plain = gateway.http.post("/v1/inpaint", files=FILES, data={"steps": 1}).raise_for_status()
        job = accepted_id(gateway.http.post("/v1/inpaint", files=FILES, data={"steps": 1}, headers={"Prefer": "respond-async"}))
        comes_to(gateway, job, "done")
        sent_here, sent_on = worker.done
        later = result(gateway, job)
    assert not {"image", "mask"} & set(sent_here.arrays)
    assert {"image", "mask"} == set(sent_on.options["unread"]) <= set(sent_on.arrays)
    outer = outside(40, 60, HOLE)
    for answer in (plain, later):
        assert np.array_equal(decode(answer.content)[outer], np.asarray(IMAGE)[outer])
