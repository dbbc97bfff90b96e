"""Views of a mesh: an image, the depth of its pixels and how the camera stood; and the surface that all views show a part of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from starters.data.renders.meshes import Mesh, Up, random_rotation, standing_rotation
from starters.data.renders.raster import Floats, rasterise

SURFACE_POINTS = 20_000
"""Points of each object's surface."""
_PROBES, _PROBE_SIDE = 18, 96
"""Images from all around an object, by which points that nobody can see are left out, and their side."""
_TRIALS = 2
"""Times `SURFACE_POINTS` that are drawn, since some lie inside."""

SURFACE = np.dtype([("point", "<f2", 3), ("normal", "i1", 3), ("colour", "u1", 3)])
"""A point of the surface in the mesh's frame; its normal, times 127, points to where it can be seen from; its colour, not lit."""


def view_dtype(side: int, seen: int, back: bool = False) -> np.dtype[np.void]:
    """A view: `side` pixels of colour along each axis, `seen` of depth; back: and as many of the surface behind."""
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
    # depth: 0 where there is no object. back: depth at which the ray of a pixel leaves the object for the last time; 0 as depth.
    # A point p of the mesh is at rotation · p + translation. focal and centre: in sides of the image.


@dataclass(frozen=True)
class Light:
    towards: Floats
    """(3,) of length 1, in the camera's frame."""
    ambient: float
    tint: Floats
    """(3,)."""

    def shine(self, colours: Floats, normals: Floats) -> Floats:
        """(P, 3) each → (P, 3) in 0..1, by Lambert's law."""
        facing = np.maximum(normals @ self.towards, 0)[:, None]
        return np.asarray(np.clip(colours * (self.ambient + (1 - self.ambient) * facing) * self.tint, 0, 1), np.float32)


def surface_of(mesh: Mesh, generator: np.random.Generator) -> npt.NDArray[np.void]:
    """`SURFACE_POINTS` points, uniform over the part of the surface that can be seen from somewhere outside. Raises ValueError."""
    areas = np.linalg.norm(np.cross(mesh.corners[:, 1] - mesh.corners[:, 0], mesh.corners[:, 2] - mesh.corners[:, 0]), axis=1)
    total = np.cumsum(areas, dtype=np.float64)
    count = _TRIALS * SURFACE_POINTS
    even = (np.arange(count) + generator.random(count)) / count * total[-1]  # one in each stretch of the same area
    face = np.minimum(np.searchsorted(total, even, side="right"), len(areas) - 1)
    root, second = np.sqrt(generator.random(count)), generator.random(count)
    weights = np.stack([1 - root, root * (1 - second), root * second], axis=1).astype(np.float32)
    points = mesh.points(face, weights)
    outwards, visible = _visible(mesh, points, mesh.normals()[face], generator)
    kept = np.flatnonzero(visible)
    if len(kept) < SURFACE_POINTS // 100:
        raise ValueError("hardly any of its surface can be seen")
    chosen = generator.permutation(kept)[:SURFACE_POINTS] if len(kept) >= SURFACE_POINTS else generator.choice(kept, SURFACE_POINTS)
    surface = np.empty(SURFACE_POINTS, SURFACE)
    surface["point"] = points[chosen]
    surface["normal"] = np.round(127 * outwards[chosen])
    surface["colour"] = np.round(255 * mesh.colours(face[chosen], weights[chosen]))
    return surface


def _visible(mesh: Mesh, points: Floats, normals: Floats, generator: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Normals turned to the side that is seen, (P, 3), and whether each point is seen in any image from around, (P,)."""
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
        here = placed[:, 2] <= depth[row * side + column] + slope * placed[:, 2] / focal
        towards += np.where(here, -np.sign(facing), 0)
        visible |= here
    return np.where(towards[:, None] < 0, -normals, normals), visible


def view_of(
    mesh: Mesh, generator: np.random.Generator, side: int, seen: int, up: Up = "any", *, back: bool = False
) -> npt.NDArray[np.void] | None:
    """One record of `view_dtype`: a photograph cropped to the object with a margin, squared by black at the bottom or on the right.

    That is what a capture becomes (`models.systems.mcc.scene_inputs.capture_to_view`). None if hardly anything of the object is seen.
    back: render the surface behind, too; it draws nothing, so that the rest is the same.
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


def _add_back(view: npt.NDArray[np.void], mesh: Mesh, corners: Floats, light: Light) -> None:
    """Write where the rays of the pixels that are seen leave the object for the last time, and the colours there, in place.

    corners: (F, 3, 3), the mesh in the camera's frame. What is behind is lit from its outside, which no ray of the camera meets.
    """
    seen = view["depth"].shape[0]
    focal, (x, y) = float(view["focal"] * seen), (float(place * seen) for place in view["centre"])
    hits = rasterise(corners, focal, (x, y), seen, farthest=True)
    normals = mesh.normals()[hits.face] @ view["rotation"].T
    away = mesh.points(hits.face, hits.weights) @ view["rotation"].T + view["translation"]
    normals *= np.where((normals * away).sum(axis=1, keepdims=True) < 0, -1, 1)
    colours = light.shine(mesh.colours(hits.face, hits.weights), normals.astype(np.float32))
    depth = np.zeros(seen * seen, np.float32)
    depth[hits.pixel] = hits.depth
    nearest = view["depth"]  # rays of an image whose pixels divide otherwise may pass beside the edge
    view["back"] = np.where(nearest > 0, np.maximum(depth.reshape(seen, seen), nearest), 0)
    view["back_colour"].reshape(-1, 3)[hits.pixel] = np.round(255 * colours)


def _light(generator: np.random.Generator) -> Light:
    """From somewhere behind the camera, most often from above."""
    towards = generator.normal(size=3) + np.array([0, -1.0, -1.5])
    tint = generator.uniform(0.8, 1.25) * generator.uniform(0.9, 1.1, 3)
    return Light((towards / np.linalg.norm(towards)).astype(np.float32), float(generator.uniform(0.25, 0.75)), tint.astype(np.float32))


def _background(generator: np.random.Generator, side: int) -> Floats:
    """(side, side, 3) in 0..1: one colour, a gradient, or a coarse pattern."""
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
