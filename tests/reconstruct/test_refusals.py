"""Bad requests to `/v1/reconstruct` end in a 4xx that names the part or option, what was wrong and what would fit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.images import CAPTURE, HEIGHT, WIDTH, depth, image, millimetres, npy, png, points
from tests.support.task_clients import JSON, Sculptor
from tests.support.waiting import eventually

IMAGE, DEPTH, POINTS = CAPTURE["image"], CAPTURE["depth"], npy(points())
BLACK = png(np.zeros((HEIGHT, WIDTH), np.uint8))


def with_(**files: bytes) -> dict[str, bytes]:
    return {"image": IMAGE, **files}


def far_point() -> bytes:
    far = points()
    far[0, 0] = 1e30
    return npy(far)


def hidden() -> bytes:
    """Opaque where nothing was seen."""
    return png(np.dstack([image(), np.where(depth() > 0, 0, 255).astype(np.uint8)]))


ROW, PIXEL = np.zeros((2, HEIGHT, WIDTH), np.uint8)
ROW[24, 26:38] = PIXEL[24, 32] = 255
SPARSE = np.where(np.arange(WIDTH) % 2, np.nan, points()[..., 2]).astype(np.float32)
PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{"a": 1}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("files", "options", "field", "reason"),
    [
        (with_(depth=png(millimetres()[:, :40])), {}, "depth", "another aspect than the image, which has 64 × 48"),
        (with_(points=npy(points()[:20])), {}, "points", "another aspect than the image"),
        (with_(depth=png(np.zeros((HEIGHT, WIDTH), np.uint16))), {}, "depth", "no pixel has a positive, finite depth"),
        (with_(depth=npy(np.full((HEIGHT, WIDTH), np.nan, np.float32))), {}, "depth", "nothing was seen"),
        (with_(depth=npy(np.full((HEIGHT, WIDTH), -1.0, np.float32))), {}, "depth", "nothing was seen"),
        (with_(points=npy(np.full((HEIGHT, WIDTH, 3), np.inf, np.float32))), {}, "points", "all points are NaN"),
        (with_(points=far_point()), {}, "points", "a coordinate of 1e+30 m: send metres"),
        (with_(points=npy(np.ones((HEIGHT, WIDTH, 3), np.float32))), {}, "points", "one and the same"),
        (with_(depth=DEPTH, mask=BLACK), {}, "mask", "covers nothing"),
        (with_(depth=DEPTH, mask=png(np.zeros((9, 9), np.uint8))), {}, "mask", "9 × 9 pixels, but the image, upright, has 64 × 48"),
        (with_(depth=DEPTH, mask=png(ROW)), {}, "mask", "shows too little: no point is left"),
        (with_(depth=DEPTH, mask=png(PIXEL)), {}, "mask", "shows too little: 1 points are seen"),
        (with_(depth=DEPTH, mask=png(PIXEL)), {"model": "hall"}, "mask", "shows too little"),
        (with_(points=POINTS, mask=png(ROW)), {}, "mask", "shows too little"),
        ({"image": png(np.dstack([image(), PIXEL])), "depth": DEPTH}, {}, "image", "shows too little: 1 points"),
        (with_(depth=npy(SPARSE), mask=png(ROW)), {}, "depth", "too few neighbouring pixels were seen"),
        ({"image": png(image(1, 500)), "depth": npy(np.ones((1, 500), np.float32))}, {"model": "hall"}, "image", "needs at least 2"),
        ({"image": hidden(), "depth": DEPTH}, {}, "image", "covers no pixel that was seen in depth"),
        (with_(depth=DEPTH, points=POINTS), {}, "points", "cannot be combined with depth: send one of them"),
        (with_(), {}, "depth", "missing: send depth with fx or fov, or points"),
        (with_(depth=DEPTH), {"fov": None, "fx": 50, "fy": 0}, "fy", "must be a number above 0"),
        (with_(depth=DEPTH), {"fx": -50}, "fx", "must be a number above 0"),
        (with_(depth=DEPTH), {"fx": "nan"}, "fx", "must be a number above 0"),
        (with_(depth=DEPTH), {"fx": 50, "fov": 60}, "fov", "cannot be combined with a focal length"),
        (with_(depth=DEPTH), {"fov": None, "fx": 1e-300}, "fx", "more than 1e+06 m to the side"),
        (with_(depth=DEPTH), {"fov": None, "fx": 50, "fy": 1e-300}, "fy", "more than 1e+06 m to the side"),
        (with_(depth=DEPTH), {"fov": None, "fx": 50, "cx": 1e9}, "cx", "more than 1e+06 m to the side"),
        (with_(depth=DEPTH), {"fov": None, "fx": 50, "cy": -1e9}, "cy", "more than 1e+06 m to the side"),
        (with_(depth=DEPTH), {"fov": None, "fx": 1e39}, "fx", "64 pixels wide: send a number above 0 and at most 366692,"),
        (with_(depth=DEPTH), {"fov": None, "fx": 366_693}, "fx", "too many for a camera"),
        (with_(depth=DEPTH), {"fov": None, "fx": 50, "fy": 1e8}, "fy", "48 pixels high: send a number above 0 and at most 275019,"),
        (with_(depth=DEPTH), {"fov": None, "fx": 1e9, "cx": 1e39}, "cx", "must be a number from -1e9 to 1e9"),
        (with_(depth=DEPTH), {"fov": None, "fx": 1e9, "cy": -1e39}, "cy", "must be a number from -1e9 to 1e9"),
        (with_(depth=DEPTH), {"fov": 1e39}, "fov", "degrees above 0 and below 180"),
        (with_(depth=DEPTH), {"fov": 180}, "fov", "degrees above 0 and below 180"),
        (with_(depth=DEPTH), {"fov": 60, "fy": 50}, "fov", "cannot be combined with a focal length"),
        (with_(points=POINTS), {"fx": 50}, "fx", "points need no camera"),
        (with_(depth=npy(depth())), {"depth_scale": 10}, "depth_scale", "is for 16-bit PNG"),
        (with_(depth=DEPTH), {"depth_scale": 0}, "depth_scale", "from 0.1 to 1e12"),
        (with_(depth=DEPTH), {"depth_scale": 1e-300}, "depth_scale", "from 0.1 to 1e12"),
        (with_(depth=DEPTH), {"depth_scale": 0.001}, "depth_scale", "from 0.1 to 1e12"),
        (with_(depth=DEPTH), {"depth_scale": 1e40}, "depth_scale", "from 0.1 to 1e12"),
        (with_(depth=npy(depth())[:-5]), {}, "depth", "truncated"),
        (with_(depth=npy(depth()) + b"more"), {}, "depth", "followed by other data"),
        (with_(depth=npy(depth())[:20]), {}, "depth", "header can be read"),
        (with_(depth=npy(depth()).replace(b"}", b" ", 1)), {}, "depth", "header can be read"),
        (with_(depth=PICKLED.getvalue()), {}, "depth", "Python objects (pickled)"),
        (with_(depth=npy(millimetres())), {}, "depth", "of uint16: save an array of float32"),
        (with_(depth=npy(points())), {}, "depth", "but (H, W) is needed"),
        (with_(points=npy(depth())), {}, "points", "but (H, W, 3) is needed"),
        (with_(points=DEPTH), {}, "points", "not a .npy file"),
        (with_(depth=png(np.full((HEIGHT, WIDTH), 9, np.uint8))), {}, "depth", "8 bits or several channels: send 16 bits"),
        (with_(depth=IMAGE), {}, "depth", "8 bits or several channels"),
        (with_(depth=DEPTH[: len(DEPTH) // 2]), {}, "depth", "truncated or corrupt"),
        (with_(depth=b"no file of depth"), {}, "depth", "neither a 16-bit PNG nor a .npy file"),
        (with_(depth=DEPTH), {"format": "stl"}, "format", "one of glb, ply, npz"),
        (with_(depth=DEPTH), {"mode": "quick"}, "mode", "one of adaptive, dense"),
        (with_(depth=DEPTH), {"threshold": 0}, "threshold", "above 0 and below 1"),
        (with_(depth=DEPTH), {"threshold": 1}, "threshold", "above 0 and below 1"),
        (with_(depth=DEPTH), {"spacing": 0}, "spacing", "above 0"),
        (with_(depth=DEPTH), {"fov": 5e-324}, "fov", "too few for a camera"),
        (with_(depth=DEPTH), {"spacing": 5}, "spacing", "is above 3"),
        (with_(depth=DEPTH), {"sharpness": 5}, "sharpness", "unknown; the parts are `image`, `depth`"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_does_not_fit(sculptor: Sculptor, files: dict[str, bytes], options: dict[str, Any], field: str, reason: str) -> None:
    named, detail = sculptor.refusal(422, files=files, **options)
    assert named == field and reason in detail


@pytest.mark.parametrize(
    ("files", "options", "field", "reason"),
    [
        (with_(depth=DEPTH), {"mode": "dense", "spacing": 0.1}, "spacing", "takes 216000 queries at first, above the limit of 200000"),
        (with_(depth=DEPTH), {"spacing": 0.001}, "spacing", "use a larger one"),
        (with_(depth=DEPTH), {"spacing": 1e-6}, "spacing", "use a larger one"),
        (with_(depth=DEPTH), {"spacing": 5e-324}, "spacing", "use a larger one"),
        (
            with_(depth=npy(np.ones((200, 200), np.float32))),
            {},
            "depth",
            "200 × 200 points are above the limit of 10000 (OPSIN_MAX_POINTS)",
        ),
        (with_(points=npy(np.ones((200, 200, 3), np.float32))), {}, "points", "OPSIN_MAX_POINTS"),
        (with_(depth=png(np.ones((200, 200), np.uint16))), {}, "depth", "OPSIN_MAX_POINTS"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_is_too_much(sculptor: Sculptor, files: dict[str, bytes], options: dict[str, Any], field: str, reason: str) -> None:
    named, detail = sculptor.refusal(413, files=files, **options)
    assert named == field and reason in detail


def test_adaptive_queries_stop_above_the_limit(sculptor: Sculptor) -> None:
    """A job of 187,500 queries exceeds 200,000 at its first neighbours. No other job fails, and no dead letter is left."""
    named, detail = sculptor.refusal(413, spacing=0.04, headers=JSON)
    assert named == "spacing" and "OPSIN_MAX_QUERIES" in detail


def test_a_header_that_promises_much_allocates_nothing(sculptor: Sculptor) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
    named, detail = sculptor.refusal(422, files=with_(depth=header.getvalue()))
    assert named == "depth" and "truncated" in detail


def test_files_that_are_no_images_are_named(sculptor: Sculptor) -> None:
    assert sculptor.refusal(415, files={"image": b"no image", "depth": DEPTH})[0] == "image"
    assert sculptor.refusal(422, files={"image": IMAGE[: len(IMAGE) // 2], "depth": DEPTH})[0] == "image"
    assert sculptor.refusal(415, files=with_(depth=DEPTH, mask=b"no image"))[0] == "mask"
    assert sculptor.refusal(422, files={"depth": DEPTH})[0] == "image"
    large = io.BytesIO()
    Image.new("L", (1100, 1000)).save(large, "PNG")
    assert sculptor.refusal(413, files={"image": large.getvalue(), "depth": DEPTH})[0] == "image"


@pytest.mark.parametrize("scale", [0.1, 1e12])
def test_the_same_shape_has_every_scale_that_is_accepted(sculptor: Sculptor, scale: float) -> None:
    usual, scaled = (sculptor.run(headers=JSON, depth_scale=value).json() for value in (1000, scale))
    assert scaled["points"] == usual["points"] > 0
    np.testing.assert_allclose(np.multiply(scaled["bounds"], scale), np.multiply(usual["bounds"], 1000), rtol=1e-3)
    sculptor.run(files=with_(depth=png(np.where(depth() > 0, 65_535, 0).astype(np.uint16))), depth_scale=scale)


def test_a_media_type_that_is_not_offered(sculptor: Sculptor) -> None:
    assert sculptor.ask(headers={"Accept": "model/stl"}).status_code == 406


def test_the_open_inference_protocol_says_which_route_serves_it(sculptor: Sculptor) -> None:
    refused = sculptor.gateway.http.post("/v2/models/shell/infer", json={"inputs": []})
    assert refused.status_code == 404
    assert "'shell' is for reconstruct, which this protocol does not offer; POST /v1/reconstruct serves it" in refused.json()["error"]


def test_after_all_of_it_the_service_answers(sculptor: Sculptor) -> None:
    sculptor.run()
    eventually(lambda: sculptor.gateway.count_in_flight() == 0, "nothing is left behind")
