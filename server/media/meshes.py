"""Meshes: a surface around the occupied cells of a lattice, and files of meshes (GLB: glTF 2.0, binary) and of coloured points (PLY, NPZ).

Surfaces are heavy: make them in a child process. scikit-image is imported when it is needed: a gateway starts without it.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLAB_CELLS = 16_000_000
"""Maximum number of cells of a volume in memory at once: a quarter of a gigabyte while its surface is made."""
BORDER = 1
"""Empty cells around the occupied ones, so that surfaces close."""
_TURNED = np.array([1, -1, -1], np.float32)
_TYPES = {"<f4": 5126, "<u4": 5125}
_KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_SHARES = np.linspace(0, 1, 256)
_LIGHT = np.where(_SHARES <= 0.04045, _SHARES / 12.92, ((_SHARES + 0.055) / 1.055) ** 2.4).astype(np.float32)
"""Linear light of sRGB's bytes (IEC 61966-2-1)."""
_ATTRIBUTES, _INDICES = 34962, 34963
"""Purposes of a view of the buffer."""
PLY_HEADER = """ply
format binary_little_endian 1.0
comment spacing {spacing:g}
{seen_spacing}element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
{seen}end_header
"""
VERTEX = [("place", "<f4", 3), ("colour", "u1", 3)]


@dataclass(frozen=True)
class TriangleMesh:
    """A mesh of triangles."""

    vertices: NDArray[np.float32]
    """(V, 3), in cells of the lattice."""
    faces: NDArray[np.int64]
    """(F, 3), seen from outside counterclockwise."""
    colours: NDArray[np.uint8]
    """(V, 3)."""


@dataclass(frozen=True)
class Cells:
    places: NDArray[np.int64]
    """(P, 3), sorted by the first column."""
    values: NDArray[np.float32]
    """(P,) probabilities; other cells have 0."""
    colours: NDArray[np.uint8]
    """(P, 3)."""


def surface(cells: Cells, level: float, slab_cells: int = SLAB_CELLS) -> TriangleMesh:
    """Extract a surface by marching cubes where the values cross `level`.

    A vertex has the colour of the occupied one of the two cells that it lies between.

    Large volumes are taken in slabs, which share a plane of cells: along it vertices are doubled, at the same places.
    """
    if not (cells.values > level).any():
        return TriangleMesh(np.empty((0, 3), np.float32), np.empty((0, 3), np.int64), np.empty((0, 3), np.uint8))
    parts = list(_slabs(cells, level, slab_cells))
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return TriangleMesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.colours for part in parts]),
    )


def _slabs(cells: Cells, level: float, slab_cells: int) -> Iterator[TriangleMesh]:
    low, high = cells.places.min(axis=0) - BORDER, cells.places.max(axis=0) + BORDER
    thickness = max(2, slab_cells // int(np.prod(high[1:] - low[1:] + 1)))
    for first in range(int(low[0]), int(high[0]), thickness - 1):
        last = min(first + thickness - 1, int(high[0]))
        start, stop = np.searchsorted(cells.places[:, 0], (first, last + 1))
        slab = slice(int(start), int(stop))
        corner = np.array([first, low[1], low[2]])
        shape = (last - first + 1, *(int(length) for length in high[1:] - low[1:] + 1))
        part = _march(Cells(cells.places[slab] - corner, cells.values[slab], cells.colours[slab]), shape, level)
        if part is not None:
            yield TriangleMesh((part.vertices + corner).astype(np.float32), part.faces, part.colours)


def _march(cells: Cells, shape: tuple[int, ...], level: float) -> TriangleMesh | None:
    """Return the surface of one volume. None if nothing crosses the level."""
    from skimage.measure import marching_cubes

    volume = np.zeros(shape, np.float32)
    volume[tuple(cells.places.T)] = cells.values
    if not volume.min() <= level < volume.max():
        return None
    colours = np.zeros((*shape, 3), np.uint8)
    colours[tuple(cells.places.T)] = cells.colours
    vertices, faces, _, _ = marching_cubes(volume, level, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    below, above = (tuple(edge(vertices).astype(np.intp).T) for edge in (np.floor, np.ceil))
    occupied = (volume[above] > volume[below])[:, None]
    return TriangleMesh(vertices, faces.astype(np.int64), np.where(occupied, colours[above], colours[below]))


@dataclass(frozen=True)
class Primitive:
    """Triangles of one material."""

    vertices: NDArray[np.float32]
    """(V, 3), in the camera's frame: x right, y down, z forward, in metres."""
    faces: NDArray[np.int64]
    """(F, 3), seen from outside counterclockwise."""
    attributes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Values (V, n) by glTF's name. A name that begins with `_` is the application's own, which viewers do not draw."""
    material: str | None = None
    """Name of the material. None for the viewer's default."""
    texture: bytes | None = None
    """A JPEG, drawn unlit. Needs a named material."""


def to_glb(primitives: Sequence[Primitive]) -> bytes:
    """Encode as one mesh. glTF's y is up, and its cameras look along -z: (x, -y, -z) is written. Without a triangle the scene is empty."""
    drawn = [primitive for primitive in primitives if len(primitive.faces)]
    written = _GltfBuilder()
    scene: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"name": "reconstruction"}]}
    if drawn:
        parts = [written.primitive(primitive) for primitive in drawn]
        scene |= {"meshes": [{"primitives": parts}], "nodes": [{"mesh": 0}], "scenes": [{"name": "reconstruction", "nodes": [0]}]}
        scene |= {"buffers": [{"byteLength": len(written.binary)}]} | {name: entries for name, entries in written.lists.items() if entries}
    if any(primitive.texture for primitive in drawn):
        scene["extensionsUsed"] = ["KHR_materials_unlit"]
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = struct.pack("<I4s", len(written.binary), b"BIN\0") + written.binary if drawn else b""
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(binary), len(text), b"JSON") + text + binary


class _GltfBuilder:
    """A builder of the scene's lists and its buffer."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.lists: dict[str, list[dict[str, Any]]] = {name: [] for name in ("accessors", "bufferViews", "materials", "textures", "images")}

    def primitive(self, primitive: Primitive) -> dict[str, Any]:
        places = np.ascontiguousarray(primitive.vertices * _TURNED, "<f4")
        bounds = {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
        attributes = {"POSITION": self._accessor(places, _ATTRIBUTES, **bounds)}
        for name, values in primitive.attributes.items():
            attributes[name] = self._accessor(values, _ATTRIBUTES)
        indices = self._accessor(primitive.faces.astype("<u4").reshape(-1, 1), _INDICES)
        material = {} if primitive.material is None else {"material": self._material(primitive)}
        return {"attributes": attributes, "indices": indices, **material}

    def _material(self, primitive: Primitive) -> int:
        surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": 1}
        material: dict[str, Any] = {"name": primitive.material, "doubleSided": True, "pbrMetallicRoughness": surface}
        if primitive.texture is not None:
            image = self._add("images", {"mimeType": "image/jpeg", "bufferView": self._add_buffer_view(primitive.texture)})
            surface["baseColorTexture"] = {"index": self._add("textures", {"source": image})}
            material["extensions"] = {"KHR_materials_unlit": {}}
        return self._add("materials", material)

    def _accessor(self, values: NDArray[Any], target: int, **properties: Any) -> int:
        view = self._add_buffer_view(np.ascontiguousarray(values).tobytes(), target=target)
        kind, count = _KINDS[values.shape[1]], len(values)
        return self._add(
            "accessors", {"bufferView": view, "componentType": _TYPES[values.dtype.str], "type": kind, "count": count, **properties}
        )

    def _add_buffer_view(self, content: bytes, **properties: Any) -> int:
        start = len(self.binary)
        self.binary += content + b"\0" * (-len(content) % 4)
        return self._add("bufferViews", {"buffer": 0, "byteOffset": start, "byteLength": len(content), **properties})

    def _add(self, name: str, entry: dict[str, Any]) -> int:
        self.lists[name].append(entry)
        return len(self.lists[name]) - 1


def linear(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert sRGB to linear light from 0 to 1, as glTF's vertices have. In 8 bits dark tones would be lost; of 16 trimesh reads 8."""
    light: NDArray[np.float32] = _LIGHT[colours]
    return light


@dataclass(frozen=True)
class SeenPoints:
    """Points of a file that were seen, not guessed."""

    flags: NDArray[np.uint8]
    """(P,): 1 if a point was seen, 0 if it is guessed."""
    spacing: float
    """Spacing of points that were seen."""


def to_ply(points: NDArray[np.float32], colours: NDArray[np.uint8], spacing: float, seen: SeenPoints | None = None) -> bytes:
    """Encode points (P, 3), colours (P, 3). spacing: of points that were not seen, written as a comment for renderers."""
    vertices = np.empty(len(points), VERTEX if seen is None else [*VERTEX, ("seen", "u1")])
    vertices["place"], vertices["colour"] = points, colours
    comments = {"seen": "", "seen_spacing": ""}
    if seen is not None:
        vertices["seen"] = seen.flags
        comments = {"seen": "property uchar seen\n", "seen_spacing": f"comment seen_spacing {seen.spacing:g}\n"}
    return PLY_HEADER.format(count=len(points), spacing=spacing, **comments).encode() + vertices.tobytes()


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
