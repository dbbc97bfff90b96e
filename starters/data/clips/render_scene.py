"""Scenes that a camera looks at: a picture on a wall, or a room, with cutouts in front of it, some of which move by themselves.

Every frame is drawn as a pinhole camera sees it. Pictures and cutouts are planes, so that each frame of them is one homography; the walls
of a room are found by casting a ray for each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from starters.data.clips.camera_paths import Path, Stage, Values
from starters.data.images.package_images import Part, Pixels, Stills

_TILE = 128
"""Pixels along the sides of a wall's texture."""
_NEAREST = 0.08
"""Distance within which a cutout is not drawn."""
_PLANE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

Matrix = npt.NDArray[np.float32]
Image = npt.NDArray[Any]
"""OpenCV does not say of which type what it makes is."""


@dataclass(frozen=True)
class Frame:
    """Pixels of what the camera records, and the point of them that it looks at."""

    width: int
    height: int
    half: float
    """Pixels of half of the short side, which a displacement is measured in."""
    middle: tuple[float, float]
    """Column and row that the camera looks at; a crop of a wider frame may lie beside it."""

    def rays(self, lens: float) -> Matrix:
        """Homogeneous pixels → directions, (3, 3)."""
        scale = 1 / (self.half * lens)
        return np.array([[scale, 0, -self.middle[0] * scale], [0, scale, -self.middle[1] * scale], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Cutout:
    """A plane that faces the camera's first frame."""

    image: Pixels
    """(h, w, 4), premultiplied."""
    centre: Values
    """(3,)."""
    half_height: float
    drift: Values
    """(3,), a second."""


@dataclass(frozen=True)
class Plane:
    """A plane at distance 1."""

    image: Pixels
    scale: float
    """Pixels of the image for a unit of the plane."""
    middle: tuple[float, float]
    """Pixel of the image ahead of the camera."""


@dataclass(frozen=True)
class Room:
    """A box around the camera."""

    textures: Pixels
    """(4 · tile, tile, 3): floor, ceiling, walls at the sides, walls ahead and behind."""
    sides: Values
    """(2, 3): the corner with the lowest and the one with the highest coordinates."""
    tile: float
    """Side of a texture in units."""


@dataclass(frozen=True)
class Scene:
    ground: Plane | Room
    turned: Matrix
    """(3, 3): how the camera's first frame looks at the ground."""
    cutouts: tuple[Cutout, ...]
    """The farthest first."""
    stage: Stage


def draw_scene(stills: Stills, part: Part, generator: np.random.Generator, *, rooms: float, duration: float) -> Scene:
    """rooms: the share of scenes that are rooms."""
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
    turned = Path(yaw, pitch, nothing, nothing, np.zeros((1, 3))).turns[0]
    return Scene(ground, turned, _draw_cutouts(stills, part, generator, lens, depths), stage)


def render(scene: Scene, path: Path, times: Values, frame: Frame) -> Pixels:
    """→ (T, height, width, 3)."""
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
    entries = stills.of(part, "cutout")
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


def _ground(stills: Stills, part: Part, generator: np.random.Generator) -> Pixels:
    entries = stills.of(part, "ground")
    image = stills.read(entries[int(generator.integers(len(entries)))])
    return image[:, ::-1] if generator.random() < 0.5 else image


def _square(image: Pixels, generator: np.random.Generator) -> Pixels:
    side = min(image.shape[:2])
    top, left = (int(generator.integers(length - side + 1)) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _collage(image: Pixels, stills: Stills, part: Part, generator: np.random.Generator) -> Pixels:
    """Cutouts pasted onto the ground, or onto one colour: they lie in its plane."""
    entries = stills.of(part, "cutout")
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


def _lay(cutout: Image, onto: Pixels) -> None:
    """Premultiplied RGBA over RGB, in place."""
    kept = 255 - cutout[..., 3:].astype(np.uint16)
    onto[...] = np.minimum(onto * kept // 255 + cutout[..., :3], 255)


def _plane_seen(ground: Plane, looks: Matrix, places: Matrix, frame: Frame) -> Pixels:
    image, shrunk = _fitting(ground.image, ground.scale * float(looks[0, 0, 0]))
    scale = ground.scale * shrunk
    to_image = np.array([[scale, 0, ground.middle[0] * shrunk], [0, scale, ground.middle[1] * shrunk], [0, 0, 1]], np.float32)
    frames = np.empty((len(looks), frame.height, frame.width, 3), np.uint8)
    for seen, look, place in zip(frames, looks, places, strict=True):
        plane = to_image @ _crossing(place, 1.0) @ look
        cv2.warpPerspective(image, plane, (frame.width, frame.height), dst=seen, flags=_PLANE, borderMode=cv2.BORDER_REFLECT_101)
    return frames


def _stand(cutout: Cutout, looks: Matrix, places: Values, times: Values, frames: Pixels, frame: Frame) -> None:
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


def _crossing(place: npt.NDArray[np.floating], depth: float) -> Matrix:
    """Directions from `place` → homogeneous points where they cross the plane at `depth`, (3, 3)."""
    return np.array([[depth - place[2], 0, place[0]], [0, depth - place[2], place[1]], [0, 0, 1]], np.float32)


def _fitting(image: Pixels, step: float) -> tuple[Image, float]:
    """The image, shrunk where a frame's neighbouring pixels are `step` of its pixels apart, and by how much."""
    if step < 1.5:
        return np.ascontiguousarray(image), 1.0
    height, width = (max(2, round(length / step)) for length in image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA), height / image.shape[0]


def _room_seen(room: Room, looks: Matrix, places: Matrix, frame: Frame) -> Pixels:
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
