"""Views of a mesh (image, depth and camera), points of its surface, and the errors of a depth sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from models.arrays import Float32Array
from starters.data.renders.meshes import PaintedMesh, Up, random_rotation, standing_rotation
from starters.data.renders.raster import rasterise

SURFACE_POINTS = 20_000
"""Number of surface points of each object."""
_PROBES, _PROBE_SIDE = 18, 96
"""Number and side in pixels of images from around an object; points that none of them shows are left out."""
_TRIALS = 2
"""Candidates per surface point, since some lie inside."""

SURFACE = np.dtype([("point", "<f2", 3), ("normal", "i1", 3), ("colour", "u1", 3)])
"""Surface point in the mesh's frame; its outward normal, times 127; its unlit colour."""


def view_dtype(side: int, seen: int, back: bool = False) -> np.dtype[np.void]:
    """Return the dtype of a view: `side` pixels of colour along each axis, `seen` of depth; back: and of the back surface."""
    behind = [("back", "<f4", (seen, seen)), ("back_colour", "u1", (seen, seen, 3))] if back else []
    return np.dtype(
        [
            ("object", "<i4"),
            ("image", "u1", (side, side, 3)),
            ("depth", "<f4", (seen, seen)),
            ("rotation", "<f4", (3, 3)),
            ("translation", "<f4", 3),
            ("focal", "<f4"),
            ("centre", "<f4", 2),
            ("light", "<f4", 3),
            ("ambient", "<f4"),
            ("tint", "<f4", 3),
            *behind,
        ]
    )
    # depth: 0 outside of the object. back: depth at which the ray of a pixel exits the object; 0 as depth.
    # A point p of the mesh is at rotation · p + translation. focal and centre: in sides of the image.


@dataclass(frozen=True)
class Light:
    towards: Float32Array
    """Unit vector (3,) to the light, in the camera's frame."""
    ambient: float
    tint: Float32Array
    """(3,)."""

    def shine(self, colours: Float32Array, normals: Float32Array) -> Float32Array:
        """Light colours by Lambert's law: (P, 3) each → (P, 3) in 0..1."""
        facing = np.maximum(normals @ self.towards, 0)[:, None]
        return np.asarray(np.clip(colours * (self.ambient + (1 - self.ambient) * facing) * self.tint, 0, 1), np.float32)


def surface_of(mesh: PaintedMesh, generator: np.random.Generator) -> npt.NDArray[np.void]:
    """Draw `SURFACE_POINTS` points, uniform over the surface that is visible from outside. Raises ValueError."""
    areas = np.linalg.norm(np.cross(mesh.corners[:, 1] - mesh.corners[:, 0], mesh.corners[:, 2] - mesh.corners[:, 0]), axis=1)
    total = np.cumsum(areas, dtype=np.float64)
    count = _TRIALS * SURFACE_POINTS
    even = (np.arange(count) + generator.random(count)) / count * total[-1]  # one in each stretch of the same area
    face = np.minimum(np.searchsorted(total, even, side="right"), len(areas) - 1)
    root, second = np.sqrt(generator.random(count)), generator.random(count)
    weights = np.stack([1 - root, root * (1 - second), root * second], axis=1).astype(np.float32)
    points = mesh.points(face, weights)
    outwards, visible = _visible(mesh, points, mesh.normals()[face], generator)
    usable = np.flatnonzero(visible)
    if len(usable) < SURFACE_POINTS // 100:
        raise ValueError("hardly any of its surface can be seen")
    chosen = generator.permutation(usable)[:SURFACE_POINTS] if len(usable) >= SURFACE_POINTS else generator.choice(usable, SURFACE_POINTS)
    surface = np.empty(SURFACE_POINTS, SURFACE)
    surface["point"] = points[chosen]
    surface["normal"] = np.round(127 * outwards[chosen])
    surface["colour"] = np.round(255 * mesh.colours(face[chosen], weights[chosen]))
    return surface


def _visible(
    mesh: PaintedMesh, points: Float32Array, normals: Float32Array, generator: np.random.Generator
) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """Return normals turned to the visible side, (P, 3), and whether each point is visible, (P,)."""
    visible = np.zeros(len(points), np.bool_)
    towards = np.zeros(len(points))  # images in which a point is seen from its normal's side, less those from behind
    distance, side = 4.0, _PROBE_SIDE
    focal = 0.48 * side * (distance - 1)
    for _ in range(_PROBES):
        rotation = random_rotation(generator)
        away = np.array([0, 0, distance], np.float32)
        hits = rasterise((mesh.corners @ rotation.T + away).astype(np.float32), focal, (side / 2, side / 2), side)
        depth = np.full(side * side, np.inf, np.float32)
        depth[hits.pixel] = hits.depth
        placed = points @ rotation.T + away
        column, row = (np.floor(focal * placed[:, axis] / placed[:, 2] + side / 2).astype(np.int64) for axis in (0, 1))
        turned = normals @ rotation.T
        facing = (turned * placed).sum(axis=1)  # below 0 towards the camera
        slope = np.minimum(np.abs(placed[:, 2]) / np.maximum(np.abs(facing), 1e-3), 8.0)
        in_sight = placed[:, 2] <= depth[row * side + column] + slope * placed[:, 2] / focal
        towards += np.where(in_sight, -np.sign(facing), 0)
        visible |= in_sight
    return np.where(towards[:, None] < 0, -normals, normals), visible


def view_of(
    mesh: PaintedMesh, generator: np.random.Generator, side: int, seen: int, up: Up = "any", *, back: bool = False
) -> npt.NDArray[np.void] | None:
    """Render a record of `view_dtype`: the object with a margin, padded to a square with black at the bottom or on the right.

    `models.systems.mcc.scene_inputs.capture_to_view` makes the same of a capture. Return None if hardly anything of the object is visible.
    back: also render the back surface; it draws no random numbers, so the rest stays the same.
    """
    rotation = standing_rotation(generator, up)
    distance = float(np.exp(generator.uniform(np.log(1.6), np.log(8.0))))
    translation = np.array([*(distance * generator.uniform(-0.25, 0.25, 2)), distance + 0.2], np.float32)
    corners = (mesh.corners @ rotation.T + translation).astype(np.float32)
    flat = (corners[..., :2] / corners[..., 2:]).reshape(-1, 2)  # what a focal length of 1 shows
    low, high = flat.min(axis=0), flat.max(axis=0)
    margin = generator.uniform(0.02, 0.15) * (high - low).max()
    width = high - low + 2 * margin
    focal = 1 / width.max()
    centre = -focal * (low - margin)
    large = np.lcm(2 * side, seen)  # two rows a pixel, and a middle for each of depth
    hits = rasterise(corners, float(focal * large), (float(centre[0] * large), float(centre[1] * large)), int(large))
    light = _light(generator)
    normals = mesh.normals()[hits.face] @ rotation.T
    towards = -(mesh.points(hits.face, hits.weights) @ rotation.T + translation)
    normals *= np.where((normals * towards).sum(axis=1, keepdims=True) < 0, -1, 1)
    canvas = _background(generator, int(large))
    covered = np.round(width / width.max() * large).astype(np.int64)
    canvas[covered[1] :] = 0
    canvas[:, covered[0] :] = 0
    canvas.reshape(-1, 3)[hits.pixel] = light.shine(mesh.colours(hits.face, hits.weights), normals)
    depth = np.zeros(large * large, np.float32)
    depth[hits.pixel] = hits.depth
    step = int(large) // seen
    view = np.zeros((), view_dtype(side, seen, back))
    view["image"] = np.round(255 * canvas.reshape(side, int(large) // side, side, -1, 3).mean(axis=(1, 3)))
    view["depth"] = depth.reshape(large, large)[step // 2 :: step, step // 2 :: step]
    if (view["depth"] > 0).sum() < 0.02 * seen * seen:
        return None
    view["rotation"], view["translation"], view["focal"], view["centre"] = rotation, translation, focal, centre
    view["light"], view["ambient"], view["tint"] = light.towards, light.ambient, light.tint
    if back:
        _add_back(view, mesh, corners, light)
    return view


def _add_back(view: npt.NDArray[np.void], mesh: PaintedMesh, corners: Float32Array, light: Light) -> None:
    """Write the depth and colours at which rays exit the object, in place. corners: (F, 3, 3), in the camera's frame."""
    seen = view["depth"].shape[0]
    focal, (x, y) = float(view["focal"] * seen), (float(place * seen) for place in view["centre"])
    hits = rasterise(corners, focal, (x, y), seen, farthest=True)
    normals = mesh.normals()[hits.face] @ view["rotation"].T
    away = mesh.points(hits.face, hits.weights) @ view["rotation"].T + view["translation"]
    normals *= np.where((normals * away).sum(axis=1, keepdims=True) < 0, -1, 1)
    colours = light.shine(mesh.colours(hits.face, hits.weights), normals.astype(np.float32))
    depth = np.zeros(seen * seen, np.float32)
    depth[hits.pixel] = hits.depth
    nearest = view["depth"]  # a back ray may miss the object at its edge
    view["back"] = np.where(nearest > 0, np.maximum(depth.reshape(seen, seen), nearest), 0)
    view["back_colour"].reshape(-1, 3)[hits.pixel] = np.round(255 * colours)


def _light(generator: np.random.Generator) -> Light:
    """Draw a light behind the camera, mostly from above."""
    towards = generator.normal(size=3) + np.array([0, -1.0, -1.5])
    tint = generator.uniform(0.8, 1.25) * generator.uniform(0.9, 1.1, 3)
    return Light((towards / np.linalg.norm(towards)).astype(np.float32), float(generator.uniform(0.25, 0.75)), tint.astype(np.float32))


def _background(generator: np.random.Generator, side: int) -> Float32Array:
    """Draw a background (side, side, 3) in 0..1: one colour, a gradient, or a coarse pattern."""
    colours = generator.random((2, 3), dtype=np.float32)
    kind = int(generator.integers(3))
    if kind == 0:
        return np.broadcast_to(colours[0], (side, side, 3)).copy()
    steps = np.linspace(0, 1, side, dtype=np.float32)
    if kind == 1:
        share = np.broadcast_to(steps[:, None] if generator.random() < 0.5 else steps[None], (side, side))
    else:
        cells = generator.random((int(generator.integers(3, 24)),) * 2, dtype=np.float32)
        index = (steps * (len(cells) - 1e-3)).astype(np.int64)
        share = cells[index][:, index]
    return np.ascontiguousarray(colours[0] + share[..., None] * (colours[1] - colours[0]))


_NOISE = (0.001, 0.015)
"""Minimum and maximum standard deviation of the noise, in radii of the object."""
_STEP = 0.15
"""Minimum step of depth between neighbours at an edge, in radii."""


def add_sensor_noise(depth: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Add a sensor's errors to a depth map (n, n), in radii of the object, 0 for none: white and smooth noise, and holes."""
    side = len(depth)
    white, smooth = np.exp(generator.uniform(np.log(_NOISE[0]), np.log(_NOISE[1]), 2))
    noise = white * generator.normal(size=depth.shape) + smooth * _smooth(generator, side)
    lost = generator.random(depth.shape) < generator.uniform(0, 0.05)
    if generator.random() < 0.5:
        lost |= _edges(depth) & (generator.random(depth.shape) < generator.uniform(0, 1))
    if generator.random() < 0.5:
        field = _smooth(generator, side)
        lost |= field > np.quantile(field, 1 - generator.uniform(0, 0.2))
    measured = (depth > 0) & ~lost
    return np.where(measured, depth + noise, 0).astype(np.float32)


def _smooth(generator: np.random.Generator, side: int, cells: int = 8) -> Float32Array:
    """Draw a smooth field (side, side), about normal, interpolated between a few values."""
    coarse = generator.normal(size=(cells + 1, cells + 1))
    place = np.linspace(0, cells, side, endpoint=False)
    first, share = place.astype(np.int64), place % 1
    rows = coarse[first] * (1 - share)[:, None] + coarse[first + 1] * share[:, None]
    return np.asarray(rows[:, first] * (1 - share) + rows[:, first + 1] * share, np.float32)


def _edges(depth: Float32Array) -> NDArray[np.bool_]:
    """Return whether a neighbour is much nearer, much farther or not on the object, (n, n)."""
    edges = np.zeros(depth.shape, np.bool_)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) > _STEP
        before = [slice(None)] * 2
        after = [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edges[tuple(before)] |= jump
        edges[tuple(after)] |= jump
    return edges
