"""`POST /v1/reconstruct` and `GET /v1/scenes/{id}` on a running service, whose network finds a shell around the origin in everything: what
the network says, without what was seen (`test_joined.py`)."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json

import httpx2
import numpy as np
import pytest
import trimesh

from tests.support.bundles.analytic_mcc import HALF, RADIUS
from tests.support.images import CAPTURE, FOV, HEIGHT, WIDTH, arrays, depth, image, mesh, npy, png, points
from tests.support.job_api import accepted_id, comes_to, events_of, result
from tests.support.task_clients import JSON, Sculptor
from tests.support.waiting import eventually

LATER = {"Prefer": "respond-async"}
SPACING = 0.2


def reconstruct(sculptor: Sculptor, **options: object) -> dict[str, np.ndarray]:
    return arrays(sculptor.run(**{"format": "npz", "surface": "network", **options}).content)


def to_network_units(found: dict[str, np.ndarray]) -> np.ndarray:
    """Return the occupied points in the units of the network's queries: (N, 3)."""
    return found["points"] / found["scale"] - found["centre"]


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Compare two answers up to the network's rounding between batches."""
    np.testing.assert_array_equal(one["cells"], other["cells"])
    np.testing.assert_allclose(one["points"], other["points"], atol=1e-5)
    assert np.abs(one["colours"].astype(int) - other["colours"]).max() <= 1


def test_a_mesh_with_what_was_done(sculptor: Sculptor) -> None:
    answer = sculptor.run(surface="network")
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert answer.headers["x-model"] == "shell@1" and "total;dur=" in answer.headers["server-timing"]
    assert answer.headers["location"].startswith("/v1/scenes/")
    solid, found = mesh(answer.content), reconstruct(sculptor)
    assert int(answer.headers["x-points"]) == len(found["points"]) > 100
    assert 30**3 / 8 < int(answer.headers["x-queries"]) < 30**3 / 2
    # in the frame of glTF, metres: the surface lies half a cell around the occupied cells
    turned = found["points"] * [1, -1, -1]
    cell = SPACING * float(found["scale"])
    np.testing.assert_allclose(solid.bounds, [turned.min(axis=0), turned.max(axis=0)], atol=cell)
    assert solid.is_watertight and np.asarray(solid.visual.vertex_colors)[:, :3].std() > 10


def test_points_lie_on_the_shell_in_the_camera_frame(sculptor: Sculptor) -> None:
    found = reconstruct(sculptor)
    distance = np.linalg.norm(to_network_units(found), axis=1)
    assert np.abs(distance - RADIUS).max() < 1.3 * HALF and (found["occupancy"] > 0.1).all()
    seen = points().reshape(-1, 3)
    seen = seen[np.isfinite(seen).all(axis=1)]
    scale = seen.std(axis=0, ddof=1).mean()
    assert float(found["scale"]) == pytest.approx(scale, rel=0.01)
    np.testing.assert_allclose(
        found["points"].mean(axis=0), seen.mean(axis=0), atol=0.02
    )  # the shell is around the middle of what was seen
    np.testing.assert_allclose(found["colours"], 255 * (to_network_units(found) / 6 + 0.5), atol=3)


def test_ply_is_the_same_points(sculptor: Sculptor) -> None:
    answer, found = sculptor.run(format="ply", surface="network"), reconstruct(sculptor)
    assert answer.headers["content-type"] == "application/x-ply"
    cloud = trimesh.load(io.BytesIO(answer.content), file_type="ply")
    np.testing.assert_array_equal(cloud.vertices.astype(np.float32), found["points"])
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], found["colours"])


@pytest.mark.parametrize(("accept", "kind"), [("application/x-ply", b"ply"), ("application/x-npz", b"PK"), ("*/*", b"glTF")])
def test_what_is_accepted_chooses_the_format(sculptor: Sculptor, accept: str, kind: bytes) -> None:
    answer = sculptor.run(headers={"Accept": accept})
    assert answer.content.startswith(kind)
    assert accept in ("*/*", answer.headers["content-type"])


def test_a_requested_format_is_never_answered_as_another(sculptor: Sculptor) -> None:
    glb = {"Accept": "model/gltf-binary"}
    scene, job = sculptor.run(format="ply").headers["location"], accepted_id(sculptor.ask(format="ply", headers=LATER))
    comes_to(sculptor.gateway, job, "done")
    read = sculptor.gateway.http.get
    for refused in (
        sculptor.ask(format="ply", headers=glb),
        read(scene, params={"format": "ply"}, headers=glb),
        read(f"/v1/jobs/{job}/result", headers=glb),
    ):
        assert (refused.status_code, refused.json()["field"]) == (406, "Accept")
        assert refused.json()["detail"].endswith("is offered as application/x-ply, application/json")


def test_json_says_more(sculptor: Sculptor) -> None:
    answer, found = sculptor.run(surface="network", headers=JSON).json(), reconstruct(sculptor)
    assert (answer["model"], answer["version"], answer["points"]) == ("shell", "1", len(found["points"]))
    assert answer["scale"] == pytest.approx(float(found["scale"]))
    np.testing.assert_allclose(answer["bounds"], [found["points"].min(axis=0), found["points"].max(axis=0)], atol=1e-6)
    assert base64.b64decode(answer["file"]).startswith(b"glTF") and len(answer["scene"]) == 34
    assert answer["timing"]["inference_ms"] > 0


def test_all_ways_to_say_where_pixels_are_agree(sculptor: Sculptor) -> None:
    expected, picture = reconstruct(sculptor, files={"image": CAPTURE["image"], "points": npy(points())}), CAPTURE["image"]
    focal = WIDTH / 2 / np.tan(np.radians(FOV) / 2)
    for files, options in (
        ({"depth": npy(depth())}, {"fov": FOV}),
        ({"depth": npy(depth().astype(np.float64))}, {"fx": focal}),
        ({"depth": npy(np.asfortranarray(depth().astype(">f4")))}, {"fx": focal, "fy": focal, "cx": WIDTH / 2, "cy": HEIGHT / 2}),
        ({"depth": png(np.rint(depth() * 20_000).astype(np.uint16))}, {"fov": FOV, "depth_scale": 20_000}),
    ):
        found = reconstruct(sculptor, files={"image": picture, **files}, **options)
        assert float(found["scale"]) == pytest.approx(float(expected["scale"]), rel=1e-3)
        np.testing.assert_allclose(found["centre"], expected["centre"], atol=2e-3)
        np.testing.assert_array_equal(found["cells"], expected["cells"])


def test_depth_of_another_size_is_taken_by_the_nearest(sculptor: Sculptor) -> None:
    large = {"image": png(image(2 * HEIGHT, 2 * WIDTH)), "depth": CAPTURE["depth"]}
    found, expected = reconstruct(sculptor, files=large), reconstruct(sculptor)
    assert float(found["scale"]) == pytest.approx(float(expected["scale"]), rel=0.05)


def test_unseen_depth_is_unseen_however_it_is_written(sculptor: Sculptor) -> None:
    expected = reconstruct(sculptor, files={"image": CAPTURE["image"], "depth": npy(depth())})
    for unseen in (np.nan, -1.0, np.inf, -np.inf):
        written = np.where(depth() > 0, depth(), np.float32(unseen)).astype(np.float32)
        assert_same(reconstruct(sculptor, files={"image": CAPTURE["image"], "depth": npy(written)}), expected)
    at_infinity = np.where(np.isnan(points()), np.float32(np.inf), points())
    assert_same(reconstruct(sculptor, files={"image": CAPTURE["image"], "points": npy(at_infinity)}), expected)


def test_masks_choose_the_object(sculptor: Sculptor) -> None:
    everything = npy(np.full((HEIGHT, WIDTH), 1.5, np.float32))
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[8:40, 4:30] = 255
    by_part = reconstruct(sculptor, files={"image": CAPTURE["image"], "depth": everything, "mask": png(left)})
    by_alpha = reconstruct(sculptor, files={"image": png(np.dstack([image(), left])), "depth": everything})
    assert_same(by_part, by_alpha)
    assert (
        by_part["points"][:, 0].mean()
        < reconstruct(sculptor, files={"image": CAPTURE["image"], "depth": everything})["points"][:, 0].mean() - 0.1
    )


def test_a_half_ball_keeps_the_camera_at_the_origin(sculptor: Sculptor) -> None:
    found = reconstruct(sculptor, model="hall", files={"image": CAPTURE["image"], "depth": npy(depth() + 1)})
    assert not found["centre"].any() and found["points"][:, 2].min() >= 0
    assert np.abs(np.linalg.norm(to_network_units(found), axis=1) - RADIUS).max() < 1.3 * HALF


def test_dense_finds_the_same_with_all_queries(sculptor: Sculptor) -> None:
    adaptive, dense = reconstruct(sculptor), reconstruct(sculptor, mode="dense")
    assert_same(adaptive, dense)
    assert sculptor.run(mode="dense").headers["x-queries"] == str(30**3)


def test_another_gateway_answers_again_about_a_scene(sculptor: Sculptor) -> None:
    location = sculptor.run().headers["location"]
    other = sculptor.service.gateways[1].http
    again = other.get(location, params={"format": "npz", "spacing": 0.1, "surface": "network"})
    assert again.status_code == 200, again.text
    assert again.headers["location"] == location
    assert_same(arrays(again.content), reconstruct(sculptor, spacing=0.1))
    answer = other.get(location, params={"threshold": 0.3, "surface": "network"}, headers=JSON).json()
    assert answer["scene"] == location.rpartition("/")[2] and answer["points"] < len(reconstruct(sculptor)["points"])
    assert sculptor.gateway.metric("opsin_scenes") > 0


@pytest.mark.parametrize(
    ("path", "options", "status", "field"),
    [
        ("/v1/scenes/" + "0" * 32, {}, 404, None),
        ("/v1/scenes/unknown", {}, 404, None),
        (None, {"fov": 60}, 422, "fov"),
        (None, {"spacing": 0.001}, 413, "spacing"),
        (None, {"spacing": -1}, 422, "spacing"),
        (None, {"sharpness": 2}, 422, "sharpness"),
        (None, {"model": "tiny"}, 422, "model"),
    ],
    ids=str,
)
def test_bad_requests_about_scenes_are_refused(
    sculptor: Sculptor, path: str | None, options: dict[str, object], status: int, field: str | None
) -> None:
    answer = sculptor.gateway.http.get(path or sculptor.run().headers["location"], params=options)
    assert (answer.status_code, answer.json().get("field")) == (status, field)


def test_events_count_levels_and_carry_the_mesh(sculptor: Sculptor) -> None:
    files = {name: (name, content) for name, content in CAPTURE.items()}
    request = {"files": files, "data": {"fov": FOV, "spacing": 0.1}, "headers": {"Accept": "text/event-stream"}}
    with httpx2.stream("POST", f"{sculptor.gateway.url}/v1/reconstruct", timeout=60, **request) as stream:
        lines = [line for line in stream.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    progress = [one for name, one in zip(names, data, strict=True) if name == "progress"]
    assert names[0] == "queued" and names[-1] == "done"
    assert all(one["unit"] == "levels" for one in progress) and progress[-1]["done"] == progress[-1]["total"]
    assert base64.b64decode(data[-1]["file"]).startswith(b"glTF")


def test_a_later_answer_is_the_same(sculptor: Sculptor) -> None:
    job = accepted_id(sculptor.ask(format="npz", surface="network", headers=LATER))
    other = sculptor.service.gateways[1]
    comes_to(other, job, "done")
    answer = result(other, job)
    assert_same(arrays(answer.content), reconstruct(sculptor))
    assert other.http.get(answer.headers["location"], params={"format": "ply"}).content.startswith(b"ply")
    assert events_of(other, job)[-1].name == "done"


def test_in_a_crowd_the_answer_is_the_same(sculptor: Sculptor) -> None:
    alone = reconstruct(sculptor)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        others = [pool.submit(sculptor.ask, spacing=spacing, format="npz") for spacing in (0.1, 0.15, 0.3, 0.5)]
        simultaneous = [pool.submit(reconstruct, sculptor) for _ in range(3)]
        assert all(other.result().status_code == 200 for other in others)
        for one in simultaneous:
            assert_same(one.result(), alone)


def test_workers_count_queries(sculptor: Sculptor) -> None:
    before = sculptor.gateway.metric("opsin_requests_total", model="shell", outcome="ok")
    sculptor.run()
    eventually(lambda: sculptor.gateway.metric("opsin_requests_total", model="shell", outcome="ok") == before + 1, "it is counted")
