"""A worker that is killed in the middle of a reconstruction costs its levels, not the answer; and kept scenes outlive it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle_schema import QuerySpace
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.images import CAPTURE, FOV, arrays
from tests.support.job_api import accepted_id, job, result
from tests.support.live_service import worker_process
from tests.support.redis import private_valkey
from tests.support.waiting import START_S, eventually

FILES = {name: (name, content) for name, content in CAPTURE.items()}


def submit_job(gateway: Gateway) -> str:
    """Submit 1.7 million queries, which take many steps, and return the job's id."""
    data = {"fov": FOV, "format": "npz", "spacing": 0.05, "mode": "dense"}
    return accepted_id(gateway.http.post("/v1/reconstruct", files=FILES, data=data, headers={"Prefer": "respond-async"}))


@pytest.mark.slow
def test_another_worker_finds_the_same(tmp_path: Path) -> None:
    write_shell(tmp_path, space=QuerySpace(spacing=0.2, reach=0.2, margin=4))
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway:
        with worker_process(valkey.url, tmp_path):  # killed at its end
            gateway.wait_for_workers()
            begun = submit_job(gateway)
            eventually(lambda: (job(gateway, begun)["progress"] or {"done": 0})["done"] > 2, "it has taken some steps", START_S)
            location = gateway.http.post("/v1/reconstruct", files=FILES, data={"fov": FOV, "format": "ply"}, timeout=120).headers[
                "location"
            ]
        assert job(gateway, begun)["state"] == "running"
        with worker_process(valkey.url, tmp_path):
            eventually(lambda: job(gateway, begun)["state"] == "done", "it is done", START_S)
            rebuilt = gateway.http.get(location, params={"format": "npz"}, timeout=120)
            assert rebuilt.status_code == 200 and len(arrays(rebuilt.content)["points"]) > 100
            again = submit_job(gateway)
            eventually(lambda: job(gateway, again)["state"] == "done", "it is done again", START_S)
            first, second = (arrays(result(gateway, one).content) for one in (begun, again))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
