"""A worker that is killed in the middle of a filling costs its steps, not the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles.vit import write_tiny_diffmae
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.images import box_mask, encode, noise
from tests.support.job_api import accepted_id, comes_to, events_of, job, result
from tests.support.live_service import worker_process
from tests.support.redis import private_valkey
from tests.support.waiting import START_S, eventually

FILES = {"image": ("image", encode(noise(40, 60))), "mask": ("mask", box_mask(40, 60, (20, 10, 40, 26)))}
OPTIONS = {"steps": 1000, "samples": 4, "sampler": "ancestral", "seed": 3, "deterministic": "true"}


def submit_job(gateway: Gateway) -> str:
    return accepted_id(gateway.http.post("/v1/inpaint", files=FILES, data=OPTIONS, headers={"Prefer": "respond-async"}))


@pytest.mark.slow
def test_another_worker_fills_the_same(tmp_path: Path) -> None:
    write_tiny_diffmae(tmp_path)
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway:
        with worker_process(valkey.url, tmp_path):  # killed at its end
            gateway.wait_for_workers()
            begun = submit_job(gateway)
            eventually(lambda: (job(gateway, begun)["progress"] or {"done": 0})["done"] > 10, "it has taken some steps")
        assert job(gateway, begun)["state"] == "running"
        with worker_process(valkey.url, tmp_path):
            eventually(lambda: job(gateway, begun)["state"] == "done", "it is done", START_S)
            again = submit_job(gateway)
            comes_to(gateway, again, "done")
            images = [[sample["image"] for sample in result(gateway, one).json()["results"]] for one in (begun, again)]
        assert images[0] == images[1]
        starts = [event for event in events_of(gateway, begun) if event.name == "progress" and event.data["done"] == 0]
        assert len(starts) == 2
