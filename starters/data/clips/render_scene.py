"""Scenes for a pinhole camera: an image on a wall, or a room, with cutouts in front of it, some of which move.

Images and cutouts are planes, so that each frame of them is one homography; the walls of a room are found by casting a ray per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from models.arrays import Float32Array, Float64Array, UInt8Array
from starters.data.clips.camera_paths import CameraPath, Stage
from starters.data.images.package_images import Part, Stills

_TILE = 128
"""Side of a wall's texture in pixels."""
_NEAREST = 0.08
"""Minimum distance of a cutout that is drawn."""
_PLANE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

Image = npt.NDArray[Any]
"""Array that OpenCV returns, which does not annotate its dtype."""


@dataclass(frozen=True)
class Viewport:
    """Size of the frame in pixels, and the camera's principal point in it."""

    width: int
    height: int
    half: float
    """Half of the short side in pixels, the unit of displacements."""
    middle: tuple[float, float]
    """Column and row of the principal point, which may be outside of a crop."""

    def rays(self, lens: float) -> Float32Array:
        """Return the matrix (3, 3) from homogeneous pixels to directions."""
        scale = 1 / (self.half * lens)
        return np.array([[scale, 0, -self.middle[0] * scale], [0, scale, -self.middle[1] * scale], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Cutout:
    """Plane that faces the camera's first frame."""

    image: UInt8Array
    """(h, w, 4), premultiplied."""
    centre: Float64Array
    """(3,)."""
    half_height: float
    drift: Float64Array
    """Movement (3,) per second."""


@dataclass(frozen=True)
class Plane:
    """Image on a plane at distance 1."""

    image: UInt8Array
    scale: float
    """Scale in pixels of the image per unit of the plane."""
    middle: tuple[float, float]
    """Column and row of the image ahead of the camera."""


@dataclass(frozen=True)
class Room:
    """Box around the camera."""

    textures: UInt8Array
    """(4 · tile, tile, 3): floor, ceiling, walls at the sides, walls ahead and behind."""
    sides: Float64Array
    """(2, 3): the corner with the lowest and the one with the highest coordinates."""
    tile: float
    """Side of a texture in units."""


@dataclass(frozen=True)
class CameraScene:
    ground: Plane | Room
    turned: Float32Array
    """Rotation (3, 3) of the camera's first frame relative to the ground."""
    cutouts: tuple[Cutout, ...]
    """Cutouts, the farthest first."""
    stage: Stage


def draw_scene(stills: Stills, part: Part, generator: np.random.Generator, *, rooms: float, duration: float) -> CameraScene:
    """Draw a scene. rooms: the share of scenes that are rooms."""
    lens = float(generator.uniform(1.0, 2.4))
    if generator.random() < rooms:
        stage = Stage(
            lens=lens, slides=0.35, distance=1.5, ahead=float(generator.uniform(0.6, 1.6)), widest_turn=math.inf, farthest_slide=0.4
        )
        ground: Plane | Room = _draw_room(stills, part, generator, stage.ahead * duration)
        turn, depths = (generator.uniform(-0.7, 0.7), generator.uniform(-0.12, 0.12)), (0.9, 3.0)
    else:
        stage = Stage(lens=lens, slides=0.35, distance=1.0, ahead=min(0.5, 0.6 / duration), widest_turn=0.6, farthest_slide=math.inf)
        ground = _draw_plane(stills, part, generator, lens)
        turn, depths = (generator.uniform(-0.25, 0.25), generator.uniform(-0.2, 0.2)), (0.45, 0.95)
    yaw, pitch = (np.array([angle]) for angle in turn)
    nothing = np.zeros(1)
    turned = CameraPath(yaw, pitch, nothing, nothing, np.zeros((1, 3))).turns[0]
    return CameraScene(ground, turned, _draw_cutouts(stills, part, generator, lens, depths), stage)


def render(scene: CameraScene, path: CameraPath, times: Float64Array, frame: Viewport) -> UInt8Array:
    """Render a scene: (T, height, width, 3)."""
    turns = path.turns
    rays = np.stack([frame.rays(float(lens)) for lens in path.lens])  # (T, 3, 3)
    looks = (scene.turned @ turns @ rays).astype(np.float32)  # pixels → directions
    places = (path.place @ scene.turned.T).astype(np.float32)
    if isinstance(scene.ground, Room):
        frames = _room_seen(scene.ground, looks, places, frame)
    else:
        frames = _plane_seen(scene.ground, looks, places, frame)
    for cutout in scene.cutouts:
        _stand(cutout, turns @ rays, path.place, times, frames, frame)
    return frames


def _draw_plane(stills: Stills, part: Part, generator: np.random.Generator, lens: float) -> Plane:
    image = _ground(stills, part, generator)
    if generator.random() < 0.5:
        image = _collage(image, stills, part, generator)
    height, width = image.shape[:2]
    seen = float(generator.uniform(0.3, 0.85)) * min(height, width)  # pixels of the image that the frame's short side shows
    scale = seen * lens / 2
    middle = tuple(float(generator.uniform(0.35, 0.65)) * length for length in (width, height))
    return Plane(np.ascontiguousarray(image), scale, (middle[0], middle[1]))


def _draw_room(stills: Stills, part: Part, generator: np.random.Generator, walk: float) -> Room:
    shades = (0.85, 0.95, 0.75, 1.0)
    choices = [_ground(stills, part, generator) for _ in range(3)]
    tiles = [cv2.resize(_square(image, generator), (_TILE, _TILE), interpolation=cv2.INTER_AREA) for image in (*choices, choices[2])]
    textures = np.concatenate([(tile * shade).astype(np.uint8) for tile, shade in zip(tiles, shades, strict=True)])
    wide, high, far = generator.uniform(0.9, 2.8), generator.uniform(0.7, 1.2), generator.uniform(1.0, 6.0)
    low = (-wide * generator.uniform(0.5, 1.0), -high, -walk - 0.6)
    return Room(textures, np.array([low, (wide, high * generator.uniform(0.6, 1.0), walk + far)]), float(generator.uniform(0.9, 2.4)))


def _draw_cutouts(
    stills: Stills, part: Part, generator: np.random.Generator, lens: float, depths: tuple[float, float]
) -> tuple[Cutout, ...]:
    entries = stills.entries_of(part, "cutout")
    movers = int(generator.integers(1, 3)) if generator.random() < 0.4 else 0
    cutouts = []
    for number in range(movers + int(generator.integers(0, 4))):
        image = stills.read(entries[int(generator.integers(len(entries)))])
        depth = float(generator.uniform(*depths))
        unit = depth / lens  # of half a frame at this depth
        size = float(generator.uniform(0.12, 0.5)) * unit
        centre = np.array([generator.uniform(-1.2, 1.2) * unit, generator.uniform(-0.8, 0.9) * unit, depth])
        drift = generator.normal(size=3) * (0.5, 0.35, 0.25) * unit if number < movers else np.zeros(3)
        cutouts.append(Cutout(image[:, ::-1] if generator.random() < 0.5 else image, centre, size, drift))
    return tuple(sorted(cutouts, key=lambda cutout: -float(cutout.centre[2])))


def _ground(stills: Stills, part: Part, generator: np.random.Generator) -> UInt8Array:
    entries = stills.entries_of(part, "ground")
    image = stills.read(entries[int(generator.integers(len(entries)))])
    return image[:, ::-1] if generator.random() < 0.5 else image


def _square(image: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    side = min(image.shape[:2])
    top, left = (int(generator.integers(length - side + 1)) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _collage(image: UInt8Array, stills: Stills, part: Part, generator: np.random.Generator) -> UInt8Array:
    """Paste cutouts onto the ground, or onto one colour, in its plane."""
    entries = stills.entries_of(part, "cutout")
    plain = generator.random() < 0.3
    canvas = image.copy()
    if plain:
        canvas[:] = generator.integers(0, 256, 3)
    height, width = canvas.shape[:2]
    for _ in range(int(generator.integers(5, 16)) if plain else int(generator.integers(2, 9))):
        pasted: Image = stills.read(entries[int(generator.integers(len(entries)))])
        scale = float(generator.uniform(0.12, 0.4)) * min(height, width) / max(pasted.shape[:2])
        size = [min(limit, max(2, round(length * scale))) for length, limit in zip(pasted.shape[:2], (height, width), strict=True)]
        pasted = cv2.resize(pasted, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        top, left = int(generator.integers(height - size[0] + 1)), int(generator.integers(width - size[1] + 1))
        _lay(pasted, canvas[top : top + size[0], left : left + size[1]])
    return canvas


def _lay(cutout: Image, onto: UInt8Array) -> None:
    """Composite premultiplied RGBA over RGB, in place."""
    transparency = 255 - cutout[..., 3:].astype(np.uint16)
    onto[...] = np.minimum(onto * transparency // 255 + cutout[..., :3], 255)


def _plane_seen(ground: Plane, looks: Float32Array, places: Float32Array, frame: Viewport) -> UInt8Array:
    image, shrunk = _fitting(ground.image, ground.scale * float(looks[0, 0, 0]))
    scale = ground.scale * shrunk
    to_image = np.array([[scale, 0, ground.middle[0] * shrunk], [0, scale, ground.middle[1] * shrunk], [0, 0, 1]], np.float32)
    frames = np.empty((len(looks), frame.height, frame.width, 3), np.uint8)
    for seen, look, place in zip(frames, looks, places, strict=True):
        plane = to_image @ _crossing(place, 1.0) @ look
        cv2.warpPerspective(image, plane, (frame.width, frame.height), dst=seen, flags=_PLANE, borderMode=cv2.BORDER_REFLECT_101)
    return frames


def _stand(cutout: Cutout, looks: Float32Array, places: Float64Array, times: Float64Array, frames: UInt8Array, frame: Viewport) -> None:
    """Draw a cutout into frames, in place."""
    height, width = cutout.image.shape[:2]
    scale = height / (2 * cutout.half_height)
    image, shrunk = _fitting(cutout.image, scale * float(looks[0, 0, 0]) * float(cutout.centre[2]))
    scale *= shrunk
    corners = np.array([[0, frame.width, 0, frame.width], [0, 0, frame.height, frame.height], [1, 1, 1, 1]], np.float32)
    for seen, look, place, time in zip(frames, looks, places, times, strict=True):
        centre = cutout.centre + cutout.drift * time
        if centre[2] - place[2] < _NEAREST or (look @ corners)[2].min() < _NEAREST:
            continue
        left, top = width * shrunk / 2 - scale * centre[0], height * shrunk / 2 - scale * centre[1]
        to_image = np.array([[scale, 0, left], [0, scale, top], [0, 0, 1]], np.float32)
        plane = to_image @ _crossing(place, float(centre[2])) @ look
        drawn = cv2.warpPerspective(image, plane, (frame.width, frame.height), flags=_PLANE, borderMode=cv2.BORDER_CONSTANT)
        _lay(drawn, seen)


def _crossing(place: npt.NDArray[np.floating], depth: float) -> Float32Array:
    """Return the matrix (3, 3) from directions at `place` to homogeneous points on the plane at `depth`."""
    return np.array([[depth - place[2], 0, place[0]], [0, depth - place[2], place[1]], [0, 0, 1]], np.float32)


def _fitting(image: UInt8Array, step: float) -> tuple[Image, float]:
    """Shrink an image if neighbouring pixels of a frame are `step` of its pixels apart; return it with the factor."""
    if step < 1.5:
        return np.ascontiguousarray(image), 1.0
    height, width = (max(2, round(length / step)) for length in image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA), height / image.shape[0]


def _room_seen(room: Room, looks: Float32Array, places: Float32Array, frame: Viewport) -> UInt8Array:
    rows, columns = np.mgrid[: frame.height, : frame.width].astype(np.float32)
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size, np.float32)])  # (3, P)
    frames = np.empty((len(looks), frame.height, frame.width, 3), np.uint8)
    low, high = room.sides.astype(np.float32)
    for seen, look, place in zip(frames, looks, places, strict=True):
        inside = np.clip(place, low + 0.05, high - 0.05)[:, None]
        rays = look @ pixels
        ahead = rays > 0
        with np.errstate(divide="ignore"):
            reach = np.where(ahead, high[:, None] - inside, inside - low[:, None]) / np.abs(rays)  # (3, P)
        wall = reach.argmin(axis=0)
        hit = inside + rays * reach.min(axis=0)
        across = np.where(wall == 0, hit[2], hit[0])
        down = np.where(wall == 1, hit[2], hit[1])
        tile = np.where(wall == 1, np.where(ahead[1], 0, 1), np.where(wall == 0, 2, 3))
        x = (across / room.tile % 1) * (_TILE - 1)
        y = (down / room.tile % 1) * (_TILE - 1) + tile * _TILE
        x, y = (map_.reshape(rows.shape).astype(np.float32) for map_ in (x, y))
        cv2.remap(room.textures, x, y, cv2.INTER_LINEAR, dst=seen, borderMode=cv2.BORDER_REPLICATE)
    return frames
