"""Inpainting as long work: previews on the way, and an answer that any gateway presents later."""

from __future__ import annotations

import base64

import numpy as np

from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.job_api import Event, accepted_id, comes_to, events_of, parse, result
from tests.support.task_clients import JSON, SIDE, Painter

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
FILE, MASK = encode(IMAGE), box_mask(40, 60, HOLE)
FILES = {"image": ("image", FILE), "mask": ("mask", MASK)}
CHOSEN = {"steps": 400, "seed": 5, "deterministic": "true"}


def pictures_of(events: list[Event]) -> list[np.ndarray]:
    return [decode(base64.b64decode(event.data["image"])) for event in events if event.name == "preview"]


def test_stream_reports_steps_and_shows_input_of_network(painter: Painter) -> None:
    with painter.gateway.http.stream(
        "POST", "/v1/inpaint", files=FILES, data=CHOSEN | {"steps": 1000}, headers={"Accept": "text/event-stream"}
    ) as response:
        events = list(parse(response.iter_lines()))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert events[0].name == "queued" and events[-1].name == "done"
    progress = [event.data for event in events if event.name == "progress"]
    assert progress[0] == {"done": 0, "total": 1000, "unit": "steps"}
    assert [report["done"] for report in progress] == sorted(report["done"] for report in progress)
    previews = pictures_of(events)
    assert previews and all(max(preview.shape[:2]) == SIDE for preview in previews)  # at the network's scale
    assert all(event.data["box"] == [0, 0, 60, 40] for event in events if event.name == "preview")  # and where that lies in the image
    answer = decode(base64.b64decode(events[-1].data["results"][0]["image"]))
    assert np.array_equal(answer[outside(40, 60, HOLE)], np.asarray(IMAGE)[outside(40, 60, HOLE)])


def test_another_gateway_presents_the_answer_in_any_form(painter: Painter) -> None:
    first, second = painter.service.gateways
    plain = painter.fill(FILE, MASK, **CHOSEN)
    job = accepted_id(first.http.post("/v1/inpaint", files=FILES, data=CHOSEN, headers={"Prefer": "respond-async"}))
    done = comes_to(second, job, "done")
    assert (done["task"], done["progress"]["unit"], done["progress"]["total"]) == ("inpaint", "steps", 400)
    for gateway in (second, first):
        png = result(gateway, job)
        assert (png.headers["content-type"], png.headers["x-seed"], png.headers["x-steps"]) == ("image/png", "5", "400")
        assert png.content == plain.content
        answer = result(gateway, job, **JSON).json()
        assert (answer["results"][0]["seed"], answer["masked_pixels"]) == (5, 320)
        assert base64.b64decode(answer["results"][0]["image"]) == plain.content


def test_a_drawn_seed_is_part_of_the_job(painter: Painter) -> None:
    """The seed is drawn once, when the job is accepted; all gateways report the same."""
    gateway = painter.gateway
    job = accepted_id(gateway.http.post("/v1/inpaint", files=FILES, data={"steps": 2}, headers={"Prefer": "respond-async"}))
    comes_to(gateway, job, "done")
    seeds = {result(gateway, job).headers["x-seed"] for gateway in painter.service.gateways}
    assert len(seeds) == 1


def test_a_large_image_comes_back_from_the_store(painter: Painter) -> None:
    """The file is too large for a message, so it travels in pieces."""
    large, hole = noise(300, 390), (9, 9, 99, 99)
    files = {"image": ("image", encode(large)), "mask": ("mask", box_mask(300, 390, hole))}
    assert len(files["image"][1]) > 256 * 1024
    outer = outside(300, 390, hole)
    first, second = painter.service.gateways
    at_once = first.http.post("/v1/inpaint", files=files, data={"steps": 2})
    job = accepted_id(first.http.post("/v1/inpaint", files=files, data={"steps": 2}, headers={"Prefer": "respond-async"}))
    comes_to(second, job, "done")
    for answer in (at_once, result(second, job)):
        assert np.array_equal(decode(answer.content)[outer], np.asarray(large)[outer])


def test_a_cancelled_job_has_no_answer(painter: Painter) -> None:
    gateway = painter.gateway
    job = accepted_id(
        gateway.http.post("/v1/inpaint", files=FILES, data={"steps": 1000, "samples": 4}, headers={"Prefer": "respond-async"})
    )
    assert gateway.http.delete(f"/v1/jobs/{job}").status_code == 204
    assert events_of(gateway, job)[-1].name == "cancelled"
    assert result(gateway, job).status_code == 410
