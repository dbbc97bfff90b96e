"""Visible points stay in the answer; the rest is a guess behind them, and marked as one."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from models.bundle_schema import QuerySpace
from models.systems.mcc.surfaces import VisibleSurface
from opsin import Client
from opsin.point_rendering import render_from_camera
from server.media import mcc_inputs
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.tasks.options import InvalidOption
from server.tasks.reconstruct.schema import ReconstructOptions
from server.tasks.reconstruct.task import ReconstructTask
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.images import CAPTURE, FOV, HEIGHT, WIDTH, arrays, depth, image, npy, png, points
from tests.support.task_clients import JSON, Sculptor

SPACING = 0.2


def parts(content: bytes) -> dict[str, dict[str, Any]]:
    """Material → primitive of a GLB, with the material itself and the file's JPEG."""
    (length,) = struct.unpack_from("<I", content, 12)
    scene, binary = json.loads(content[20 : 20 + length]), content[28 + length :]
    view = scene["bufferViews"][scene["images"][0]["bufferView"]]
    picture = binary[view["byteOffset"] :][: view["byteLength"]]
    found = {}
    for part in scene["meshes"][0]["primitives"]:
        material = scene["materials"][part["material"]]
        found[material["name"]] = {**part, "told": material, "picture": picture, "images": scene["images"]}
    return found


def values(content: bytes, number: int) -> NDArray[np.float32]:
    """Return the vectors of an accessor of a GLB: float32 (N, 3)."""
    (length,) = struct.unpack_from("<I", content, 12)
    scene, binary = json.loads(content[20 : 20 + length]), content[28 + length :]
    accessor = scene["accessors"][number]
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
    return np.frombuffer(binary, "<f4", 3 * accessor["count"], scene["bufferViews"][accessor["bufferView"]]["byteOffset"]).reshape(-1, 3)


def smooth() -> NDArray[np.uint8]:
    """Return an image that JPEG hardly changes."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([4 * across, 5 * down, 255 - 2 * (across + down)], axis=-1).astype(np.uint8)


def test_visible_points_are_in_the_mesh_under_the_photograph(sculptor: Sculptor) -> None:
    files = {"image": png(smooth()), "depth": npy(depth())}
    found = arrays(sculptor.run(files=files, format="npz").content)
    seen = found["seen"] == 1
    valid = np.isfinite(points()).all(axis=2)
    np.testing.assert_allclose(found["points"][seen], points()[valid], atol=0.003)
    assert np.abs(found["colours"][seen].astype(int) - smooth()[valid]).max() < 12
    assert (~seen).sum() > 100
    cell = float(found["pitch"] * found["scale"])
    assert found["sizes"].max() <= cell
    cloud = trimesh.load(io.BytesIO(sculptor.run(files=files, format="ply").content), file_type="ply")
    np.testing.assert_allclose(cloud.vertices, found["points"], atol=1e-4)
    answer = sculptor.run(files=files, format="ply", headers=JSON).json()
    assert answer["points"] == len(found["points"])
    np.testing.assert_allclose(answer["bounds"], [found["points"].min(axis=0), found["points"].max(axis=0)], atol=1e-4)


def test_a_mesh_marks_what_was_seen_and_what_is_guessed(sculptor: Sculptor) -> None:
    found = parts(sculptor.run(files={"image": png(smooth()), "depth": npy(depth())}).content)
    seen, guessed = found["seen"], found["guessed"]
    assert [image["mimeType"] for image in seen["images"]] == ["image/jpeg"]
    assert "COLOR_0" not in seen["attributes"] and {"_SEEN", "_COLOR", "TEXCOORD_0"} <= seen["attributes"].keys()
    assert {"_SEEN", "COLOR_0"} <= guessed["attributes"].keys() and "baseColorTexture" not in guessed["told"]["pbrMetallicRoughness"]
    with Image.open(io.BytesIO(seen["picture"])) as photograph:
        valid = np.isfinite(points()).all(axis=2)
        rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
        box = smooth()[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.abs(np.asarray(photograph).astype(int) - box).mean() < 2
    solid = trimesh.load(io.BytesIO(sculptor.run().content), file_type="glb")
    flags = [mesh.vertex_attributes["_SEEN"] for mesh in solid.geometry.values()]
    assert [set(np.unique(flag)) for flag in flags] == [{1.0}, {0.0}]


def test_standard_mesh_has_colours_of_its_points(sculptor: Sculptor) -> None:
    """glTF 2.0, 3.7.2.1: COLOR_0 is linear. IEC 61966-2-1 makes sRGB of it."""
    content, found = sculptor.run().content, arrays(sculptor.run(format="npz").content)
    attributes = parts(content)["guessed"]["attributes"]
    light = values(content, attributes["COLOR_0"])
    colours = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    distance, nearest = cKDTree(values(content, attributes["POSITION"]) * [1, -1, -1]).query(found["points"][found["seen"] == 0])
    assert distance.max() < 1e-5
    np.testing.assert_allclose(colours[nearest], found["colours"][found["seen"] == 0] / 255, atol=1 / 255)


def test_from_the_camera_the_answer_looks_like_the_photograph(sculptor: Sculptor) -> None:
    with Client(sculptor.gateway.url) as client:
        found = client.reconstruct(smooth(), depth(), fov=FOV, format="npz")
    focal = WIDTH / 2 / np.tan(np.radians(FOV) / 2)
    camera = {"fx": focal, "fy": focal, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    view = render_from_camera(found.cloud(), camera, HEIGHT, WIDTH)
    valid = np.isfinite(points()).all(axis=2)
    error = (view.astype(float) - smooth())[valid]
    assert 10 * np.log10(255**2 / (error**2).mean()) >= 25
    assert found.seen is not None and found.seen.sum() == valid.sum()


def test_hidden_mesh_is_behind_visible_points_and_in_silhouette(sculptor: Sculptor) -> None:
    """Allow one spacing of tolerance. The network's shell breaks the rule on purpose."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:40, 20:44] = 255
    files = {"image": CAPTURE["image"], "depth": npy(np.where(depth() > 0, depth(), 1.6).astype(np.float32)), "mask": png(mask)}
    front = VisibleSurface(
        np.where(mask > 0, np.where(depth() > 0, depth(), 1.6), np.nan).astype(np.float32),
        mask > 0,
        np.array([WIDTH / 2 / np.tan(np.radians(FOV) / 2)] * 2 + [WIDTH / 2, HEIGHT / 2], np.float32),
        np.array([0, 0, WIDTH, HEIGHT], np.float32),
        np.zeros(3, np.float32),
    )
    for spacing in (0.1, 0.2):
        found = arrays(sculptor.run(files=files, format="npz", spacing=spacing).content)
        cell = float(found["pitch"] * found["scale"])
        assert front.is_consistent(found["points"], 1.05 * cell).all()
        solid = trimesh.load(io.BytesIO(sculptor.run(files=files, spacing=spacing).content), file_type="glb").to_geometry()
        assert front.is_consistent((solid.vertices * [1, -1, -1]).astype(np.float32), 1.05 * cell).all()
        network = arrays(sculptor.run(files=files, format="npz", spacing=spacing, surface="network").content)
        assert not front.is_consistent(network["points"], 1.05 * cell).all()


def test_a_scene_is_joined_again_by_another_gateway(sculptor: Sculptor) -> None:
    """And after a job that any gateway may present."""
    first = sculptor.run(format="npz")
    again = sculptor.service.gateways[1].http.get(first.headers["location"], params={"format": "npz"})
    one, other = arrays(first.content), arrays(again.raise_for_status().content)
    np.testing.assert_allclose(one["points"], other["points"], atol=1e-4)
    assert (one["seen"] == other["seen"]).all()
    network = sculptor.service.gateways[1].http.get(first.headers["location"], params={"format": "npz", "surface": "network"})
    assert "seen" not in arrays(network.raise_for_status().content)


def test_points_that_no_camera_sees_are_answered_by_the_network(sculptor: Sculptor) -> None:
    """The rows of points are shifted, as if each had its own camera."""
    bent = points().copy()
    bent[..., 0] += 0.3 * np.sin(np.arange(HEIGHT))[:, None]
    files = {"image": CAPTURE["image"], "points": npy(bent)}
    assert "seen" not in arrays(sculptor.run(files=files, format="npz").content)
    field, detail = sculptor.refusal(422, files=files, surface="joined")
    assert field == "surface" and "`network`" in detail
    assert "seen" in arrays(sculptor.run(files={"image": CAPTURE["image"], "points": npy(points())}, format="npz").content)


def test_scene_kept_without_view_answers_as_before(tmp_path: Any) -> None:
    task, spec = ReconstructTask(), write_shell(tmp_path, space=QuerySpace(spacing=SPACING, reach=0.2, margin=4)).spec
    request_plan = task.plan(ReconstructOptions(fov=FOV, format="npz"), spec)
    [fresh] = task.prepare({"image": CAPTURE["image"], "depth": CAPTURE["depth"]}, request_plan, spec, ImageDecoder(50_000_000))
    scene = {"latent": np.zeros((17, 48), np.float32), "seen": fresh["seen"], "scale": fresh["scale"], "centre": fresh["centre"]}
    plan = task.plan_followup(ReconstructOptions(format="npz"), spec, "a" * 32)
    assert task.prepare_followup(scene, plan, MediaLimits()).keys() == {*scene, "asks"}
    cells = np.array([5000, 5001], np.int32)
    outputs = {"cells": cells, "occupancy": np.full(2, 0.9, np.float32), "colours": np.zeros((2, 3), np.uint8), "queries": np.array([9, 9])}
    answer = task.present([{**outputs, "scale": scene["scale"], "centre": scene["centre"]}], plan, spec, "application/x-npz")
    assert {"cells", "occupancy"} <= arrays(answer.content).keys()  # type: ignore[union-attr]
    with pytest.raises(InvalidOption) as refused:
        task.prepare_followup(scene, task.plan_followup(ReconstructOptions(surface="joined"), spec, "a" * 32), MediaLimits())
    assert refused.value.field == "surface"


def test_what_is_kept_of_a_large_photograph_is_small(tmp_path: Any) -> None:
    task, spec = ReconstructTask(), write_shell(tmp_path, space=QuerySpace(spacing=SPACING, reach=0.2, margin=4)).spec
    large = np.asarray(Image.fromarray(image()).resize((20 * WIDTH, 20 * HEIGHT)))
    plan = task.plan(ReconstructOptions(fov=FOV), spec)
    [made] = task.prepare({"image": png(large), "depth": CAPTURE["depth"]}, plan, spec, ImageDecoder(50_000_000))
    assert max(made["front_depth"].shape) == 512 and made["front_depth"].dtype == np.float16
    with Image.open(io.BytesIO(made["front"].tobytes())) as photograph:
        assert photograph.format == "JPEG" and photograph.size == made["front_depth"].shape[::-1]
    without = {name: array for name, array in made.items() if name != "front"}
    assert task.result_bound(plan, spec, made) - task.result_bound(plan, spec, without) == made["front"].nbytes


def test_sensor_holes_belong_to_object_and_drawn_ones_do_not(tmp_path: Any) -> None:
    task, spec = ReconstructTask(), write_shell(tmp_path, space=QuerySpace(spacing=SPACING, reach=0.2, margin=4)).spec
    gap = depth().copy()
    gap[22:26, 30:36] = 0
    drawn = png(np.where(gap > 0, 255, 0).astype(np.uint8))
    plan = task.plan(ReconstructOptions(fov=FOV), spec)
    for parts_sent, filled in (({}, True), ({"mask": drawn}, False)):
        [made] = task.prepare({"image": CAPTURE["image"], "depth": npy(gap), **parts_sent}, plan, spec, ImageDecoder(50_000_000))
        front = mcc_inputs.front_from_outputs(made)
        assert front is not None and not front.seen.all()
        silhouette = (depth() > 0)[(depth() > 0).any(axis=1)][:, (depth() > 0).any(axis=0)]
        assert (front.mask == (silhouette if filled else silhouette & np.isfinite(front.depth))).all()
