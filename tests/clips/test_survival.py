"""Clips that are disturbed while their views are seen: the worker is killed, the decoder dies, the client cancels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import psutil

from models.media.video import PROGRAM
from tests.clips.test_route import TOLERANCE, ask, scores_of
from tests.support.bundles.clips import NETWORKS, expect, frames, video, write_recorded
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import accepted_id, comes_to, job, result
from tests.support.live_service import Service, forget_worker, worker_process
from tests.support.processes import copies
from tests.support.redis import private_valkey
from tests.support.videos import clip, every
from tests.support.waiting import START_S, eventually


@cache
def long_video() -> bytes:
    """Fifty seconds, of which 30 views with 3 crops take a while."""
    return clip(every(1500, 30.0), size=(96, 128))


def submit(gateway: Gateway, file: bytes, **options: object) -> str:
    return accepted_id(ask(gateway, file, {"Prefer": "respond-async"}, **options))


def decoders(service: Service, others: list[psutil.Process]) -> list[psutil.Process]:
    """Wait until its worker reads a video by other processes than these, and return them: a clip may be done soon after."""
    return eventually(lambda: [copy for copy in copies(PROGRAM, service.worker) if copy not in others], "it is read", START_S)


def done(gateway: Gateway, job_id: str) -> int:
    progress = job(gateway, job_id)["progress"]
    return progress["done"] if progress else 0


def test_worker_killed_mid_clip_changes_no_answer(tmp_path: Path) -> None:
    bundles, count = tmp_path / "bundles", 400
    write_recorded(bundles, "mae-st")
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway:
        with worker_process(valkey.url, bundles) as worker:
            gateway.wait_for_workers()
            hurt = submit(gateway, video(count, 20.0), views=30, crops=3, top_k=11)
            eventually(lambda: done(gateway, hurt) > 0, "it has seen some views", START_S)
            reading = copies(PROGRAM, worker.pid)
            forget_worker(valkey.url, worker)
        assert psutil.wait_procs(reading, timeout=START_S)[1] == [], "no process reads the video any more"
        assert job(gateway, hurt)["state"] != "done", "it was killed too late to tell anything"
        with worker_process(valkey.url, bundles):
            comes_to(gateway, hurt, "done")
            answer = result(gateway, hurt).raise_for_status().json()
    np.testing.assert_allclose(scores_of(answer), expect(NETWORKS["mae-st"], frames(count), 20.0, 30, 3), atol=TOLERANCE)


def test_video_is_read_twice_and_decoder_dying_twice_fails_job(watching: Service) -> None:
    gateway = watching.gateway
    job_id = submit(gateway, long_video(), views=30, crops=3)
    killed: list[psutil.Process] = []
    for _reading in range(2):
        for process in decoders(watching, killed):
            process.kill()
            killed.append(process)
    failed = comes_to(gateway, job_id, "failed")
    assert (failed["error"]["status"], failed["error"]["field"]) == (422, "video"), failed
    assert "signal 9" in failed["error"]["detail"]
    assert ask(gateway, video(12)).status_code == 200


def test_a_clip_that_is_cancelled_closes_its_video(watching: Service) -> None:
    gateway = watching.gateway
    left = watching.sum_metric("opsin_step_leaves_total", how="unwanted")
    job_id = submit(gateway, long_video(), views=30, crops=3)
    reading = decoders(watching, [])
    for process in reading:
        process.suspend()  # the clip cannot be done before it is cancelled
    assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    eventually(lambda: watching.sum_metric("opsin_step_leaves_total", how="unwanted") == left + 1, "the worker has dropped it", START_S)
    assert psutil.wait_procs(reading, timeout=START_S)[1] == [], "no process reads the video any more"
