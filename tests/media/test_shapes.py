"""Cells → a closed, coloured surface, which trimesh reads back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh

from server.media import meshes
from server.media.meshes import Cells, TriangleMesh, to_npz, to_ply

SIDE = 24


def ball(radius: float = 8.0) -> Cells:
    """Values fall from the centre outwards and cross 0.5 at the radius; x is red."""
    places = np.argwhere(np.ones((SIDE,) * 3, bool)).astype(np.int64)
    distance = np.linalg.norm(places - (SIDE - 1) / 2, axis=1)
    values = (1 / (1 + np.exp(distance - radius))).astype(np.float32)
    near = distance < radius + 2
    colours = np.zeros((len(places), 3), np.uint8)
    colours[:, 0], colours[:, 1] = 10 * places[:, 0], 7
    colours[values <= 0.5] = 0
    return Cells(places[near], values[near], colours[near])


@pytest.fixture(scope="module")
def mesh() -> TriangleMesh:
    return meshes.surface(ball(), 0.5)


def glb_of(mesh: TriangleMesh) -> bytes:
    return meshes.to_glb([meshes.Primitive(mesh.vertices, mesh.faces, {"COLOR_0": meshes.linear(mesh.colours)})])


def load_glb(mesh: TriangleMesh) -> trimesh.Trimesh:
    return trimesh.load(io.BytesIO(glb_of(mesh)), file_type="glb").to_geometry()


def test_the_surface_lies_where_values_cross_the_level(mesh: TriangleMesh) -> None:
    distance = np.linalg.norm(mesh.vertices - (SIDE - 1) / 2, axis=1)
    assert np.abs(distance - 8).max() < 0.1
    read = load_glb(mesh)
    assert read.is_watertight and read.volume == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.02)  # positive: seen from outside


def test_axes_are_gltfs_and_colours_those_of_occupied_cells(mesh: TriangleMesh) -> None:
    read = load_glb(mesh)
    np.testing.assert_allclose(read.vertices, mesh.vertices * [1, -1, -1], atol=1e-5)
    colours = np.asarray(read.visual.vertex_colors)[:, :3]
    np.testing.assert_array_equal(colours, np.rint(255 * meshes.linear(mesh.colours)))  # trimesh leaves them linear
    assert (mesh.colours[:, 1] == 7).all()  # no empty cell's
    assert np.abs(mesh.colours[:, 0] / 10 - mesh.vertices[:, 0]).max() <= 1


def test_slabs_are_one_surface(mesh: TriangleMesh) -> None:
    slabs = meshes.surface(ball(), 0.5, slab_cells=5 * (SIDE + 2) ** 2)
    assert len(slabs.faces) == len(mesh.faces) and len(slabs.vertices) > len(mesh.vertices)
    joined = trimesh.Trimesh(slabs.vertices, slabs.faces)
    assert joined.is_watertight and joined.volume == pytest.approx(load_glb(mesh).volume, rel=1e-5)


def test_a_cell_at_the_border_of_the_lattice_is_closed() -> None:
    one = Cells(np.zeros((1, 3), np.int64), np.ones(1, np.float32), np.full((1, 3), 9, np.uint8))
    assert load_glb(meshes.surface(one, 0.5)).is_watertight


def test_nothing_is_an_empty_scene() -> None:
    nothing = Cells(np.empty((0, 3), np.int64), np.empty(0, np.float32), np.empty((0, 3), np.uint8))
    mesh = meshes.surface(nothing, 0.1)
    assert len(trimesh.load(io.BytesIO(glb_of(mesh)), file_type="glb").geometry) == 0


def test_ply_and_npz_are_read_back() -> None:
    points = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    colours = np.random.default_rng(1).integers(0, 256, (100, 3), np.uint8)
    read = trimesh.load(io.BytesIO(to_ply(points, colours, 0.1)), file_type="ply")
    np.testing.assert_array_equal(read.vertices, points)
    np.testing.assert_array_equal(np.asarray(read.colors)[:, :3], colours)
    with np.load(io.BytesIO(to_npz({"points": points})), allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz["points"], points)
