"""Meshes to be rendered: triangles with colours, read from files or built from simple shapes, and painted where they have no texture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import trimesh
from PIL import Image
from trimesh.visual.texture import TextureVisuals

from starters.data.renders.raster import Floats, Ints

_TEXTURE = 128
"""Side of a texture."""
_MOST_FACES = 120_000

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Paint:
    """Colours that depend on where a point is, for meshes that have none."""

    kind: str
    """plain, stripes, checks, blots, or picture: a texture projected along one direction."""
    colours: Floats
    """(C, 3) in 0..1."""
    directions: Floats
    """(2, 3) of any length: more of it, more of the pattern."""
    picture: Bytes | None = None
    """(T, T, 3)."""

    def at(self, points: Floats) -> Floats:
        """(P, 3) → (P, 3) in 0..1."""
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
class Mesh:
    """Triangles inside a sphere of radius 1 around the origin."""

    corners: Floats
    """(F, 3, 3)."""
    uv: Floats
    """(F, 3, 2), from the lower left of a texture."""
    texture: Ints
    """(F,), which one."""
    textures: Bytes
    """(T, side, side, 3)."""
    paint: Paint | None = None
    """Instead of textures."""

    def points(self, face: Ints, weights: Floats) -> Floats:
        """Places on triangles, (P,) and (P, 3) barycentric → (P, 3)."""
        return np.asarray(np.einsum("pk,pkc->pc", weights, self.corners[face]), np.float32)

    def colours(self, face: Ints, weights: Floats) -> Floats:
        """(P, 3) in 0..1."""
        if self.paint is not None:
            return self.paint.at(self.points(face, weights))
        uv = np.einsum("pk,pkc->pc", weights, self.uv[face])
        side = self.textures.shape[1]
        column, row = (np.floor(part * side).astype(np.int64) % side for part in (uv[:, 0], 1 - uv[:, 1]))
        return np.asarray(self.textures[self.texture[face], row, column] / np.float32(255), np.float32)

    def normals(self) -> Floats:
        """(F, 3) of length 1; 0 for triangles without area."""
        edges = self.corners[:, 1:] - self.corners[:, :1]
        normals = np.cross(edges[:, 0], edges[:, 1])
        return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20), np.float32)


def read(file: Path, paint: Paint, picture: Path | None = None) -> Mesh:
    """A file that trimesh reads.

    paint: for meshes whose faces all have the same colour. picture: the texture of a file that names none. Raises ValueError.
    """
    scene: Any = trimesh.load(file, force="scene", process=False)
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise ValueError("no triangles")
    if sum(len(part.faces) for part in parts) > _MOST_FACES:
        raise ValueError(f"more than {_MOST_FACES} triangles")
    corners, uv, owners, textures = [], [], [], []
    for number, part in enumerate(parts):
        coordinates, texture = _texture_of(part, picture)
        corners.append(np.asarray(part.vertices, np.float32)[part.faces])
        uv.append(coordinates)
        owners.append(np.full(len(part.faces), number))
        textures.append(texture)
    every = np.stack(textures)
    plain = bool((every == every[:1, :1, :1]).all())
    return Mesh(_centred(np.concatenate(corners)), np.concatenate(uv), np.concatenate(owners), every, paint if plain else None)


def painted(corners: Floats, paint: Paint) -> Mesh:
    """(F, 3, 3), of any size and place."""
    count = len(corners)
    empty = np.zeros((1, 1, 1, 3), np.uint8)
    return Mesh(_centred(corners), np.zeros((count, 3, 2), np.float32), np.zeros(count, np.int64), empty, paint)


def _texture_of(part: trimesh.Trimesh, picture: Path | None) -> tuple[Floats, Bytes]:
    """Texture coordinates of the corners (F, 3, 2), and the image; one colour fills an image, too."""
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


def _centred(corners: Floats) -> Floats:
    """Into the sphere. Raises ValueError."""
    points = corners.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("a corner is not finite")
    low, high = points.min(axis=0), points.max(axis=0)
    moved = corners - (low + high) / 2
    radius = np.linalg.norm(moved.reshape(-1, 3), axis=1).max()
    if radius < 1e-9:
        raise ValueError("no extent")
    return np.asarray(moved / radius, np.float32)


def draw_paint(generator: np.random.Generator, pictures: Sequence[Bytes] = ()) -> Paint:
    """pictures: (T, T, 3) each, one of which may be the paint."""
    kinds = ["plain", "stripes", "checks", "blots", *(["picture"] * 2 if len(pictures) else [])]
    kind = str(generator.choice(kinds))
    colours = generator.random((int(generator.integers(2, 5)), 3), dtype=np.float32)
    directions = generator.normal(size=(2, 3)).astype(np.float32) * np.float32(np.exp(generator.uniform(-0.5, 1.0)))
    picture = pictures[int(generator.integers(len(pictures)))] if kind == "picture" else None
    return Paint(kind, colours, directions * np.float32(0.3 if kind == "picture" else 1.0), picture)


def read_texture(file: Path) -> Bytes:
    """A texture for `draw_paint`."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((_TEXTURE, _TEXTURE), Image.Resampling.BOX))


def composed(generator: np.random.Generator) -> Floats:
    """One to four boxes, cylinders, cones, balls, rings, capsules or turned shapes that touch each other, (F, 3, 3)."""
    corners: list[Floats] = []
    for _ in range(int(generator.integers(1, 5))):
        part = _simple(generator)
        stretch = np.exp(generator.uniform(-0.5, 0.5, 3)).astype(np.float32)
        turned = part * stretch @ random_rotation(generator)
        if corners:
            place = corners[int(generator.integers(len(corners)))].reshape(-1, 3)
            turned = turned * np.float32(np.exp(generator.uniform(-1.0, 0.2))) + place[int(generator.integers(len(place)))]
        corners.append(turned.astype(np.float32))
    return np.concatenate(corners)


def _simple(generator: np.random.Generator) -> Floats:
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


def random_rotation(generator: np.random.Generator) -> Floats:
    """(3, 3), uniform."""
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
"""The axis of a mesh that points up; any: it may lie in every way."""
TO_CAMERA: Mapping[str, Floats] = {
    "y": np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], np.float32),
    "z": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32),
}
"""Up becomes the camera's -y."""


def standing_rotation(generator: np.random.Generator, up: Up) -> Floats:
    """(3, 3): seen from any side, most often from somewhat above, by a camera that is held nearly level."""
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
