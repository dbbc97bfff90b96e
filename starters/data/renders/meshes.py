"""Meshes to render: coloured triangles, read from files or composed of simple shapes, and painted if they have no texture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.texture import TextureVisuals

from models.arrays import Float32Array, Int64Array, UInt8Array

_TEXTURE = 128
"""Side of a texture in pixels."""
_MAX_FACES = 120_000


@dataclass(frozen=True)
class Paint:
    """Colours that depend on a point's position, for meshes without colours."""

    kind: str
    """Pattern: plain, stripes, checks, blots, or picture (a texture projected along one direction)."""
    colours: Float32Array
    """(C, 3) in 0..1."""
    directions: Float32Array
    """Directions (2, 3); the longer, the finer the pattern."""
    picture: UInt8Array | None = None
    """(T, T, 3)."""

    def colours_at(self, points: Float32Array) -> Float32Array:
        """Return colours in 0..1 of points: (P, 3) → (P, 3)."""
        along = points @ self.directions.T  # (P, 2)
        if self.picture is not None:
            column, row = ((along * _TEXTURE).astype(np.int64) % _TEXTURE).T
            return np.asarray(self.picture[row, column] / np.float32(255), np.float32)
        steps = np.floor(along).astype(np.int64)
        if self.kind == "stripes":
            chosen = steps[:, 0]
        elif self.kind == "checks":
            chosen = steps.sum(axis=1)
        elif self.kind == "blots":
            waves = np.sin(2 * np.pi * along).sum(axis=1) + np.sin(2 * np.pi * (along @ np.array([0.7, -1.3])))
            chosen = np.floor(waves).astype(np.int64)
        else:
            chosen = np.zeros(len(points), np.int64)
        return np.asarray(self.colours[chosen % len(self.colours)])


@dataclass(frozen=True)
class PaintedMesh:
    """Triangles inside a sphere of radius 1 around the origin."""

    corners: Float32Array
    """(F, 3, 3)."""
    uv: Float32Array
    """(F, 3, 2), from the lower left of a texture."""
    texture: Int64Array
    """Texture of each triangle, (F,)."""
    textures: UInt8Array
    """(T, side, side, 3)."""
    paint: Paint | None = None
    """Paint that replaces the textures."""

    def points(self, face: Int64Array, weights: Float32Array) -> Float32Array:
        """Return points on triangles: face (P,) and barycentric weights (P, 3) → (P, 3)."""
        return np.asarray(np.einsum("pk,pkc->pc", weights, self.corners[face]), np.float32)

    def colours(self, face: Int64Array, weights: Float32Array) -> Float32Array:
        """Return colours (P, 3) in 0..1 of points on triangles."""
        if self.paint is not None:
            return self.paint.colours_at(self.points(face, weights))
        uv = np.einsum("pk,pkc->pc", weights, self.uv[face])
        side = self.textures.shape[1]
        column, row = (np.floor(part * side).astype(np.int64) % side for part in (uv[:, 0], 1 - uv[:, 1]))
        return np.asarray(self.textures[self.texture[face], row, column] / np.float32(255), np.float32)

    def normals(self) -> Float32Array:
        """Return unit normals (F, 3); 0 for triangles without area."""
        edges = self.corners[:, 1:] - self.corners[:, :1]
        normals = np.cross(edges[:, 0], edges[:, 1])
        return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20), np.float32)


def read(file: Path, paint: Paint, picture: Path | None = None) -> PaintedMesh:
    """Read a file that trimesh supports.

    paint: for meshes whose faces all have the same colour. picture: the texture of a file that names none. Raises ValueError.
    """
    scene: Any = trimesh.load(file, force="scene", process=False)
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise ValueError("no triangles")
    if sum(len(part.faces) for part in parts) > _MAX_FACES:
        raise ValueError(f"more than {_MAX_FACES} triangles")
    corners, uv, owners, textures = [], [], [], []
    for number, part in enumerate(parts):
        coordinates, texture = _texture_of(part, picture)
        corners.append(np.asarray(part.vertices, np.float32)[part.faces])
        uv.append(coordinates)
        owners.append(np.full(len(part.faces), number))
        textures.append(texture)
    every = np.stack(textures)
    plain = bool((every == every[:1, :1, :1]).all())
    return PaintedMesh(_centre(np.concatenate(corners)), np.concatenate(uv), np.concatenate(owners), every, paint if plain else None)


def paint_mesh(corners: Float32Array, paint: Paint) -> PaintedMesh:
    """Make a mesh of triangles (F, 3, 3) of any size and position."""
    count = len(corners)
    empty = np.zeros((1, 1, 1, 3), np.uint8)
    return PaintedMesh(_centre(corners), np.zeros((count, 3, 2), np.float32), np.zeros(count, np.int64), empty, paint)


def _texture_of(part: trimesh.Trimesh, picture: Path | None) -> tuple[Float32Array, UInt8Array]:
    """Return texture coordinates of the corners (F, 3, 2), and the texture; a single colour becomes a plain texture."""
    visual: Any = part.visual
    coordinates = np.zeros((len(part.faces), 3, 2), np.float32)
    colour: tuple[float, ...] = (200, 200, 200)
    image: Image.Image | None = None
    if isinstance(visual, TextureVisuals):
        material: Any = visual.material
        named = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        image = named if picture is None else Image.open(picture)
        if visual.uv is not None and len(visual.uv) == len(part.vertices):
            coordinates = np.nan_to_num(np.asarray(visual.uv, np.float32))[part.faces]
        elif image is not None:
            image = None
        main = getattr(material, "main_color", None)
        colour = tuple(float(value) for value in main[:3]) if main is not None else colour
    elif visual.kind in ("vertex", "face"):
        colour = tuple(float(value) for value in np.asarray(visual.main_color)[:3])
    if image is None:
        image = Image.new("RGB", (1, 1), cast("Any", tuple(round(value) for value in colour)))
    opaque = image.convert("RGB")
    return coordinates, np.asarray(
        opaque.resize((_TEXTURE, _TEXTURE), Image.Resampling.BOX if opaque.width > 1 else Image.Resampling.NEAREST)
    )


def _centre(corners: Float32Array) -> Float32Array:
    """Move and scale triangles into the unit sphere. Raises ValueError."""
    points = corners.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("a corner is not finite")
    low, high = points.min(axis=0), points.max(axis=0)
    moved = corners - (low + high) / 2
    radius = np.linalg.norm(moved.reshape(-1, 3), axis=1).max()
    if radius < 1e-9:
        raise ValueError("no extent")
    return np.asarray(moved / radius, np.float32)


def draw_paint(generator: np.random.Generator, pictures: Sequence[UInt8Array] = ()) -> Paint:
    """Draw a paint. pictures: textures (T, T, 3), one of which may be chosen."""
    kinds = ["plain", "stripes", "checks", "blots", *(["picture"] * 2 if len(pictures) else [])]
    kind = str(generator.choice(kinds))
    colours = generator.random((int(generator.integers(2, 5)), 3), dtype=np.float32)
    directions = generator.normal(size=(2, 3)).astype(np.float32) * np.float32(np.exp(generator.uniform(-0.5, 1.0)))
    picture = pictures[int(generator.integers(len(pictures)))] if kind == "picture" else None
    return Paint(kind, colours, directions * np.float32(0.3 if kind == "picture" else 1.0), picture)


def read_texture(file: Path) -> UInt8Array:
    """Read a texture for `draw_paint`."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((_TEXTURE, _TEXTURE), Image.Resampling.BOX))


def compose_shapes(generator: np.random.Generator) -> Float32Array:
    """Draw one to four boxes, cylinders, cones, balls, rings, capsules or surfaces of revolution that touch: (F, 3, 3)."""
    corners: list[Float32Array] = []
    for _ in range(int(generator.integers(1, 5))):
        part = _simple(generator)
        stretch = np.exp(generator.uniform(-0.5, 0.5, 3)).astype(np.float32)
        turned = part * stretch @ random_rotation(generator)
        if corners:
            place = corners[int(generator.integers(len(corners)))].reshape(-1, 3)
            turned = turned * np.float32(np.exp(generator.uniform(-1.0, 0.2))) + place[int(generator.integers(len(place)))]
        corners.append(turned.astype(np.float32))
    return np.concatenate(corners)


def _simple(generator: np.random.Generator) -> Float32Array:
    create: Any = trimesh.creation
    kind = int(generator.integers(8))
    if kind <= 1:
        mesh = create.box(extents=generator.uniform(0.5, 2.0, 3))
    elif kind == 2:
        mesh = create.cylinder(radius=generator.uniform(0.3, 1.0), height=generator.uniform(0.3, 2.5), sections=24)
    elif kind == 3:
        mesh = create.cone(radius=generator.uniform(0.4, 1.0), height=generator.uniform(0.5, 2.0), sections=24)
    elif kind == 4:
        mesh = create.icosphere(subdivisions=2)
    elif kind == 5:
        mesh = create.torus(major_radius=1.0, minor_radius=generator.uniform(0.1, 0.45), major_sections=24, minor_sections=10)
    elif kind == 6:
        mesh = create.capsule(radius=generator.uniform(0.2, 0.6), height=generator.uniform(0.5, 2.0), count=(12, 16))
    else:
        heights = np.linspace(0, generator.uniform(1.0, 2.5), 9)
        radii = np.clip(generator.uniform(0.3, 0.8) + np.cumsum(generator.normal(0, 0.15, 9)), 0.05, 1.2)
        profile = np.stack([np.concatenate([[0], radii, [0]]), np.concatenate([heights[:1], heights, heights[-1:]])], axis=1)
        mesh = create.revolve(profile, sections=24)
    return np.asarray(mesh.triangles, np.float32)


def random_rotation(generator: np.random.Generator) -> Float32Array:
    """Draw a uniform rotation (3, 3)."""
    q = generator.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


Up = Literal["any", "y", "z"]
"""Axis of a mesh that points up; any: it has no fixed orientation."""
TO_CAMERA: Mapping[str, Float32Array] = {
    "y": np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], np.float32),
    "z": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32),
}
"""Rotations of a mesh that turn its up axis to the camera's -y."""


def standing_rotation(generator: np.random.Generator, up: Up) -> Float32Array:
    """Draw a rotation (3, 3): seen from any side, mostly from slightly above, by a nearly level camera."""
    if up == "any":
        return random_rotation(generator)
    turned, tilted, rolled = (
        generator.uniform(0, 2 * np.pi),
        *np.radians([np.clip(generator.normal(22, 15), -10, 75), generator.normal(0, 4)]),
    )
    (ct, st), (ce, se), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in (turned, tilted, rolled))
    about_y = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
    about_x = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y @ TO_CAMERA[up], np.float32)
