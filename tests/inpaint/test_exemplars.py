"""Holes of a running service that are filled with patches from around them."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from models.media import patchmatch
from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.job_api import accepted_id, comes_to, result
from tests.support.task_clients import JSON, Painter

pytestmark = pytest.mark.skipif(not patchmatch.installed(), reason="patchmatch-cython has no wheel for this machine")

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
FILE, MASK = encode(IMAGE), box_mask(40, 60, HOLE)
FILES = {"image": ("image", FILE), "mask": ("mask", MASK)}


def ask(painter: Painter, headers: dict[str, str] | None = None, **options: object) -> object:
    return painter.gateway.http.post("/v1/inpaint", files=FILES, data=options, headers=headers).raise_for_status()


@pytest.mark.parametrize("method", ["exemplar", "network-exemplar"])
@pytest.mark.parametrize("size", ["fit", "crop", "tile"])
def test_what_is_outside_stays_and_seeds_repeat(painter: Painter, method: str, size: str) -> None:
    answers = [ask(painter, method=method, size=size, seed=5) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert (answers[0].headers["x-method"], answers[0].headers["x-seed"]) == (method, "5")
    filled, outer = decode(answers[0].content), outside(40, 60, HOLE)
    assert np.array_equal(filled[outer], np.asarray(IMAGE)[outer])
    assert (filled[~outer] != np.asarray(IMAGE)[~outer]).any()


def test_json_reports_method_steps_and_sampler(painter: Painter) -> None:
    answer = ask(painter, JSON, method="exemplar", samples=2, seed=5).json()
    assert (answer["method"], answer["steps"], answer["sampler"]) == ("exemplar", 0, "none")
    first, second = (base64.b64decode(sample["image"]) for sample in answer["results"])
    assert first != second == ask(painter, method="exemplar", seed=6).content
    assert ask(painter, JSON).json()["method"] == "network", "a bundle without rules"


def test_a_later_answer_is_the_same(painter: Painter) -> None:
    job = accepted_id(
        painter.gateway.http.post("/v1/inpaint", files=FILES, data={"method": "exemplar", "seed": 5}, headers={"Prefer": "respond-async"})
    )
    assert comes_to(painter.gateway, job, "done")["progress"]["unit"] == "steps"
    later = result(painter.service.gateways[1], job)
    assert later.content == ask(painter, method="exemplar", seed=5).content and later.headers["x-method"] == "exemplar"


def test_what_cannot_be_copied_is_refused(painter: Painter) -> None:
    files = FILES | {"mask": ("mask", box_mask(40, 60, (2, 2, 58, 38)))}
    refused = painter.gateway.http.post("/v1/inpaint", files=files, data={"method": "exemplar"})
    assert (refused.status_code, refused.json()["field"]) == (422, "method") and "no known 5 × 5 pixels" in refused.json()["detail"]


@pytest.mark.parametrize("method", ["exemplar", "network-exemplar", "network"])
def test_image_without_hole_returns_by_the_requested_method(painter: Painter, method: str) -> None:
    files = FILES | {"mask": ("mask", box_mask(40, 60, (0, 0, 0, 0)))}
    answer = painter.gateway.http.post("/v1/inpaint", files=files, data={"method": method}).raise_for_status()
    assert answer.headers["x-method"] == method and np.array_equal(decode(answer.content), np.asarray(IMAGE))
