from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.bundle_schema import Preprocess
from starters.data.renders.meshes import Paint, PaintedMesh, Up, paint_mesh, standing_rotation
from starters.data.renders.raster import rasterise
from starters.data.renders.render_views import surface_of, view_of
from starters.data.renders.scenes import RenderedScenes, Renders
from starters.tests import meshes
from training.data.source import SamplePreparation
from training.errors import DataError

PREPROCESS = Preprocess(image_size=32, short_side=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Paint("plain", np.array([[0.2, 0.6, 0.4]], np.float32), np.zeros((2, 3), np.float32))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    cache = tmp_path_factory.mktemp("renders")
    return meshes.data(cache), cache


def open_source(content: tuple[dict[str, Any], Path], **changes: Any) -> RenderedScenes:
    return Renders.model_validate(content[0] | changes).open(SamplePreparation(PREPROCESS, cache=content[1]))


def cast(corners: np.ndarray, direction: np.ndarray, farthest: bool) -> float:
    """Depth along z at which a ray from the origin meets the first triangle, or the last one (Möller and Trumbore, 1997); inf if it meets
    none."""
    a, b, c = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(direction, c)
    volume = (b * across).sum(axis=1)
    u = (-a * across).sum(axis=1) / volume
    other = np.cross(-a, b)
    v, t = other @ direction / volume, (c * other).sum(axis=1) / volume
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    return float(t[hit].max() if farthest else t[hit].min()) if hit.any() else np.inf


@pytest.mark.parametrize("farthest", [False, True])
def test_pixel_has_first_or_last_hit_of_its_ray(farthest: bool) -> None:
    dice = np.random.default_rng(0)
    corners = (dice.normal(size=(40, 1, 3)) * 0.7 + dice.normal(size=(40, 3, 3)) * 0.5 + [0, 0, 4]).astype(np.float32)
    side, focal, centre = 32, 40.0, (15.0, 17.5)
    hits = rasterise(corners, focal, centre, side, farthest=farthest)
    depth = np.full(side * side, np.inf)
    depth[hits.pixel] = hits.depth
    rows, columns = np.divmod(np.arange(side * side), side)
    rays = np.stack([(columns + 0.5 - centre[0]) / focal, (rows + 0.5 - centre[1]) / focal, np.ones(side * side)], axis=1)
    expected = np.array([cast(corners.astype(np.float64), ray, farthest) for ray in rays])
    np.testing.assert_allclose(depth, expected, rtol=1e-4)
    met = np.einsum("pk,pkc->pc", hits.weights, corners[hits.face])
    np.testing.assert_allclose(met, rays[hits.pixel] * hits.depth[:, None], atol=1e-4)


def test_what_lies_inside_an_object_is_no_surface() -> None:
    box = meshes.trimesh.creation.box(extents=(2, 2, 2)).triangles.astype(np.float32)
    mesh = paint_mesh(np.concatenate([box, box * np.float32(0.4)]), PLAIN)
    surface = surface_of(mesh, np.random.default_rng(0))
    assert np.abs(surface["point"].astype(np.float32)).max(axis=1).min() == pytest.approx(3**-0.5, abs=1e-3)
    sides = np.abs(surface["point"].astype(np.float32)).argmax(axis=1) * 2 + (surface["normal"].sum(axis=1) > 0)
    assert np.bincount(sides).tolist() == pytest.approx([len(surface) / 6] * 6, rel=0.1)
    outwards = (surface["point"].astype(np.float32) * surface["normal"]).sum(axis=1)
    assert (outwards > 0).mean() > 0.98  # the outline may be seen from either side


@pytest.mark.parametrize("up", ["y", "z"])
def test_standing_objects_are_upright_and_mostly_seen_from_above(up: Up) -> None:
    dice = np.random.default_rng(0)
    rotations = np.stack([standing_rotation(dice, up) for _ in range(500)])
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (500, 1, 1)), atol=1e-5)
    assert np.linalg.det(rotations) == pytest.approx(np.ones(500), abs=1e-4)
    upwards = rotations[:, :, "xyz".index(up)]  # where the mesh's own up points to: x right, y down, z forward
    assert (upwards[:, 1] < 0).all() and (np.abs(upwards[:, 0]) < 0.3).all()
    assert (upwards[:, 2] < 0).mean() > 0.85  # its top leans towards a camera above it
    ahead = np.arctan2(rotations[:, 0, 0], rotations[:, 2, 0])
    assert np.histogram(ahead, bins=4, range=(-np.pi, np.pi))[0].min() > 90


def test_a_view_is_cropped_to_the_object_and_squared_by_black() -> None:
    long = meshes.trimesh.creation.box(extents=(0.2, 0.2, 2)).triangles.astype(np.float32)
    for seed in range(8):
        view = view_of(paint_mesh(long, PLAIN), np.random.default_rng(seed), 32, 16)
        assert view is not None
        rows, columns = np.nonzero(view["depth"])
        assert max(rows.max(), columns.max()) >= 13 and min(rows.min(), columns.min()) <= 2
        black = (view["image"] == 0).all(axis=-1)
        height, width = (~black.all(axis=1)).sum(), (~black.all(axis=0)).sum()
        assert max(height, width) == 32
        assert not black[:height, :width].any() and black[height:].all() and black[:, width:].all()


def test_seen_points_lie_on_the_surface_up_to_the_noise(content: tuple[dict[str, Any], Path]) -> None:
    train = open_source(content)
    for index in range(9):  # the balls
        sample = train.sample(index, 0)
        centre = (sample["surface"].amax(dim=0) + sample["surface"].amin(dim=0)) / 2
        radius = (sample["surface"] - centre).norm(dim=1).mean()
        seen = sample["points"][sample["valid"]]
        assert ((seen - centre).norm(dim=1) / radius - 1).abs().mean() < 0.03
        assert seen.mean(dim=0).abs().max() < 1e-4 and seen.std(dim=0).mean() == pytest.approx(1, abs=1e-4)
        towards = (seen - centre) @ (sample["camera"] - centre)
        assert (towards > 0).float().mean() > 0.95  # the half that faces the camera


def test_back_surface_is_rendered_if_the_recipe_wants_it(tmp_path: Path) -> None:
    thirds = SamplePreparation(PREPROCESS.model_copy(update={"image_size": 24}), cache=tmp_path)  # of a pixel: its middle is rendered
    settings = meshes.data(tmp_path) | {"sensor": False}
    usual, with_back = (Renders.model_validate(settings | changes).open(thirds) for changes in ({}, {"back": True}))
    for shard, other in zip(usual.rendered, with_back.rendered, strict=True):
        assert shard.views.dtype.names is not None
        assert all(shard.views[name].tobytes() == other.views[name].tobytes() for name in shard.views.dtype.names)
    for index in range(9):  # the balls
        sample = with_back.sample(index, 0)
        valid, camera = sample["valid"], sample["camera"]
        centre = (sample["surface"].amax(dim=0) + sample["surface"].amin(dim=0)) / 2
        radius = (sample["surface"] - centre).norm(dim=1).mean()
        back, rays = sample["back"][valid], sample["points"][valid] - camera
        assert ((back - centre).norm(dim=1) / radius - 1).abs().max() < 0.03
        torch.testing.assert_close(rays / rays[:, 2:], (back - camera) / (back - camera)[:, 2:], atol=1e-4, rtol=0)
        assert (((back - centre) * rays).sum(dim=1) > -0.05 * radius * rays.norm(dim=1)).all()  # there the ray leaves the ball
        assert (sample["back_colours"][valid].amax(dim=1) > 0).all()
    assert "back" not in usual.sample(0, 0)


def test_a_sample_is_a_function_of_its_draw(content: tuple[dict[str, Any], Path]) -> None:
    train, again = open_source(content), open_source(content)
    samples = [train.sample(2, draw) for draw in range(3)]
    assert all(torch.equal(sample[key], again.sample(2, draw)[key]) for draw, sample in enumerate(samples) for key in sample)
    assert len({sample["points"].numpy().tobytes() for sample in samples}) == 3
    assert torch.equal(samples[0]["pixels"], samples[1]["pixels"])


def test_textures_and_lights_colour_the_surface_as_the_image(content: tuple[dict[str, Any], Path]) -> None:
    test = open_source(content, part="test")
    for index in range(len(test)):
        colours = test.sample(index, 0)["colours"]
        assert (colours[:, 1] < 0.05).all() and ((colours[:, 0] > 0.1) ^ (colours[:, 2] > 0.1)).float().mean() > 0.98
        assert (colours[:, 0] > 0.1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_rendering_goes_on_where_it_was_stopped(content: tuple[dict[str, Any], Path]) -> None:
    before = open_source(content)
    [index_file] = [file for file in content[1].glob("renders-*/0000.json") if "composed" in file.read_text()]
    views, names = (np.array(before.rendered[0].views), before.rendered[0].names)
    times = {file: file.stat().st_mtime_ns for file in index_file.parent.parent.glob("renders-*/0000-views.npy")}
    index_file.unlink()
    index_file.with_name("0000-views.partial").write_bytes(b"half")
    after = open_source(content)
    assert after.rendered[0].names == names and after.rendered[0].views.tobytes() == views.tobytes()
    assert all(file.stat().st_mtime_ns != time for file, time in times.items() if file.parent == index_file.parent)
    assert after.identity() == before.identity()


def test_a_file_that_is_no_mesh_is_left_out_and_named(content: tuple[dict[str, Any], Path]) -> None:
    [shard] = open_source(content).rendered
    assert list(shard.left_out) == ["shapes/package/shapes/broken.obj"]
    assert set(shard.categories) == {"balls", "composed shapes"} and len(shard.views) == 3 * 3 + 2 * 2


def test_a_category_is_trained_on_or_held_out(content: tuple[dict[str, Any], Path]) -> None:
    [package] = content[0]["packages"]
    changes = {"category": "balls", "part": "test", "views": 1, "files": ["package/shapes/brick.obj"]}
    with pytest.raises(ValidationError, match="category balls belongs to one of train, val and test alone"):
        Renders.model_validate(content[0] | {"packages": [package | {"objects": [*package["objects"], changes]}]})


def test_a_pattern_without_files_is_named(content: tuple[dict[str, Any], Path]) -> None:
    [package] = content[0]["packages"]
    objects = [{"category": "cubes", "views": 1, "files": ["package/cubes/*.obj"]}]
    with pytest.raises(DataError, match=r"data.packages: shapes 1.0.0 has no file package/cubes/\*.obj"):
        open_source(content, packages=[package | {"objects": objects}])


def test_paint_depends_on_the_place_alone() -> None:
    stripes = Paint("stripes", np.eye(3, dtype=np.float32), np.array([[2, 0, 0], [0, 2, 0]], np.float32))
    mesh = PaintedMesh(
        np.zeros((1, 3, 3), np.float32), np.zeros((1, 3, 2), np.float32), np.zeros(1, np.int64), np.zeros((1, 1, 1, 3), np.uint8), stripes
    )
    assert mesh.colours(np.zeros(1, np.int64), np.full((1, 3), 1 / 3, np.float32)).tolist() == [[1, 0, 0]]
    points = np.array([[0.1, 9, 9], [0.6, 0, 0], [1.1, 5, 5], [1.6, 0, 0]], np.float32)
    assert stripes.colours_at(points).argmax(axis=1).tolist() == [0, 1, 2, 0]
