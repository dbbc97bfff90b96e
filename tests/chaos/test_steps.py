"""A job of many steps that outlives its worker: what a client sees over HTTP."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.bundles.vit import write_null
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

STEPS = 60


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def submit(service: Service) -> str:
    answer = httpx2.post(
        f"{service.url}/v1/classify", params={"model": "toy"}, content=picture(9), headers={"Prefer": "respond-async"}, timeout=30
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(service: Service, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{service.url}/v1/jobs/{id_}", timeout=30).json()
    return found


@pytest.mark.slow
def test_job_reports_steps_and_survives_death_of_its_worker(tmp_path: Path) -> None:
    write_null(tmp_path, "toy", milliseconds=30, steps=(STEPS,), width=8)
    write_null(tmp_path, milliseconds=1)
    with serve(tmp_path) as service:
        undisturbed = submit(service)
        eventually(lambda: job(service, undisturbed)["state"] == "done", "the first job is done")
        hurt = submit(service)
        eventually(lambda: (job(service, hurt)["progress"] or {"done": 0})["done"] > STEPS // 4, "it has taken steps")
        assert job(service, hurt)["progress"]["unit"] == "steps"
        [worker] = service.children("worker")
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: job(service, hurt)["state"] == "done", "another worker has done it", 60)
        answers = [httpx2.get(f"{service.url}/v1/jobs/{id_}/result", timeout=30).json()["results"] for id_ in (undisturbed, hurt)]
        assert answers[0] == answers[1]
        events = httpx2.get(f"{service.url}/v1/jobs/{hurt}/events", timeout=30).text
    assert events.count('"done":0,') == 2, "it started twice"
    assert events.count("event: done") == 1
