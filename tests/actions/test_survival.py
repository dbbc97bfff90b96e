"""Jobs that are disturbed in the middle of a video: the worker is killed, the job is cancelled, the client leaves."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from models.media.video import PROGRAM
from tests.actions.fake_pose_estimator import long_video, two_people
from tests.support.bundles.actions import write_watcher
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.job_api import accepted_id, comes_to, job, parse, result
from tests.support.live_service import Service, forget_worker, worker_process
from tests.support.processes import children, copies
from tests.support.raw_http import Raw, post
from tests.support.redis import private_valkey
from tests.support.waiting import START_S, eventually
from training.data.demo_clip import CLIP, CLIPS
from training.data.packages import obtain
from training.errors import DataError

SECONDS = 90
PEOPLE = 8


def real_clip(folder: Path) -> dict[str, bytes]:
    """Read a clip in which MoveNet detects two people."""
    try:
        return {"video": (obtain(CLIPS, folder) / CLIP).read_bytes()}
    except DataError as error:
        pytest.skip(str(error))


def long_tracks(_folder: Path) -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    rows = np.tile(np.arange(15 * SECONDS), PEOPLE)
    box = np.column_stack([draw.uniform(10, 200, (len(rows), 2)), draw.uniform(20, 90, (len(rows), 2)), draw.uniform(0.5, 1, len(rows))])
    person = np.repeat(np.arange(1, PEOPLE + 1), 15 * SECONDS)
    file = io.BytesIO()
    np.savez(file, person=person, time=rows / 15, box=box, pose=draw.uniform(0, 1, (len(rows), 51)) * 200, size=[320, 240])
    return {"tracks": file.getvalue()}


def submit(gateway: Gateway, parts: dict[str, bytes], **options: Any) -> str:
    headers = {"Prefer": "respond-async"}
    return accepted_id(gateway.http.post("/v1/actions", files=parts, data=options, headers=headers, timeout=120))


def done(gateway: Gateway, job_id: str) -> int:
    progress = job(gateway, job_id)["progress"]
    return progress["done"] if progress else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("parts_of", [real_clip, long_tracks], ids=["video", "tracks"])
def test_killed_worker_loses_its_windows_and_changes_no_answer(tmp_path: Path, parts_of: Any) -> None:
    parts, bundles = parts_of(tmp_path / "cache"), tmp_path / "bundles"
    write_watcher(bundles)
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway:
        with worker_process(valkey.url, bundles) as worker:
            gateway.wait_for_workers()
            hurt = submit(gateway, parts)
            eventually(lambda: done(gateway, hurt) > 2, "it has taken some windows", START_S)
            reading = [*children(PROGRAM, worker.pid), *copies(PROGRAM, worker.pid)]
            forget_worker(valkey.url, worker)
        assert job(gateway, hurt)["state"] == "running"
        assert psutil.wait_procs(reading, timeout=60)[1] == [], "who reads a video for a worker ends with it"
        with worker_process(valkey.url, bundles):
            eventually(lambda: job(gateway, hurt)["state"] == "done", "another worker has done it", START_S)
            undisturbed = submit(gateway, parts)
            eventually(lambda: job(gateway, undisturbed)["state"] == "done", "it is done again", START_S)
            first, second = (result(gateway, one).json()["people"] for one in (hurt, undisturbed))
            events = gateway.http.get(f"/v1/jobs/{hurt}/events", timeout=60).text
    assert first == second and len(first) == (2 if "video" in parts else PEOPLE)
    assert events.count('"done":0,') == 2 and events.count("event: done") == 1


def test_cancelled_job_stops_between_windows_and_closes_video(watching: Service) -> None:
    gateway = watching.gateway
    left = watching.sum_metric("opsin_step_leaves_total", how="unwanted")
    job_id = submit(gateway, {"video": long_video()})
    eventually(lambda: done(gateway, job_id) > 1, "it is being watched", START_S)
    reading = copies(PROGRAM, watching.worker)
    assert gateway.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert comes_to(gateway, job_id, "cancelled")["progress"]["done"] < job(gateway, job_id)["progress"]["total"]
    eventually(lambda: watching.sum_metric("opsin_step_leaves_total", how="unwanted") == left + 1, "the worker has dropped it", START_S)
    assert psutil.wait_procs(reading, timeout=START_S)[1] == [], "no process reads the video any more"
    assert result(gateway, job_id).status_code == 410


def test_a_client_that_leaves_in_mid_clip_stops_the_work(watching: Service) -> None:
    gateway = watching.gateway
    left = watching.sum_metric("opsin_step_leaves_total", how="unwanted")
    headers = {"Accept": "text/event-stream"}
    with gateway.http.stream("POST", "/v1/actions", files={"video": long_video()}, headers=headers, timeout=START_S) as response:
        next(event for event in parse(response.iter_lines()) if event.name == "progress" and event.data["done"] > 1)
        reading = copies(PROGRAM, watching.worker)
    eventually(lambda: watching.sum_metric("opsin_step_leaves_total", how="unwanted") == left + 1, "the worker has dropped it", START_S)
    assert psutil.wait_procs(reading, timeout=START_S)[1] == [], "no process reads the video any more"
    short = gateway.http.post("/v1/actions", files={"video": two_people(4)}, timeout=START_S)
    assert short.status_code == 200, short.text


@pytest.mark.parametrize("later", [False, True], ids=["at once", "as a job's result"])
def test_leaving_client_stops_drawing_of_its_clip(watching: Service, *, later: bool) -> None:
    gateway = watching.gateway
    video = long_video()
    request = post("/v1/actions?end_s=0.2", "Accept: video/mp4", f"Content-Length: {len(video)}", body=video)
    if later:
        job_id = submit(gateway, {"video": long_video()}, end_s=0.2)
        comes_to(gateway, job_id, "done")
        request = f"GET /v1/jobs/{job_id}/result HTTP/1.1\r\nHost: opsin\r\nAccept: video/mp4\r\n\r\n".encode()
    with Raw(gateway) as client:
        client.send(request)
        eventually(lambda: drawing(gateway), "it is being drawn", START_S)
        processes = drawing(gateway)
        for process in processes:
            process.suspend()  # by itself it will not come to an end
    try:
        eventually(lambda: not drawing(gateway), "no process draws any more", START_S)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def drawing(gateway: Gateway) -> list[psutil.Process]:
    return children("server.media.annotate_video_program", gateway.process.pid)
