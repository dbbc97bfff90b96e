"""Meshes → a GLB (glTF 2.0, binary)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TURNED = np.array([1, -1, -1], np.float32)
_TYPES = {"<f4": 5126, "|u1": 5121, "<u4": 5125}
_KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_ATTRIBUTES, _INDICES = 34962, 34963
"""What a view of the buffer is for."""


@dataclass(frozen=True)
class Primitive:
    """Triangles of one material."""

    vertices: NDArray[np.float32]
    """(V, 3), in the camera's frame: x right, y down, z forward, in metres."""
    faces: NDArray[np.int64]
    """(F, 3), seen from outside counterclockwise."""
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """glTF's name → (V, n): float32, or uint8 RGBA. One that begins with `_` is the application's own, which viewers do not draw."""
    material: str | None = None
    """Its name; None: the viewer's own."""
    texture: bytes | None = None
    """A JPEG, drawn as it is, without light. Of a material with a name."""


def to_glb(primitives: Sequence[Primitive]) -> bytes:
    """One mesh. glTF's y is up, and its cameras look along -z: (x, -y, -z) is written. Without a triangle the scene is empty."""
    drawn = [primitive for primitive in primitives if len(primitive.faces)]
    written = _Written()
    scene: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"name": "reconstruction"}]}
    if drawn:
        parts = [written.primitive(primitive) for primitive in drawn]
        scene |= {"meshes": [{"primitives": parts}], "nodes": [{"mesh": 0}], "scenes": [{"name": "reconstruction", "nodes": [0]}]}
        scene |= {"buffers": [{"byteLength": len(written.binary)}]} | {name: told for name, told in written.lists.items() if told}
    if any(primitive.texture for primitive in drawn):
        scene["extensionsUsed"] = ["KHR_materials_unlit"]
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = struct.pack("<I4s", len(written.binary), b"BIN\0") + written.binary if drawn else b""
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(binary), len(text), b"JSON") + text + binary


class _Written:
    """Lists of the scene and the buffer, as they grow."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.lists: dict[str, list[dict[str, Any]]] = {name: [] for name in ("accessors", "bufferViews", "materials", "textures", "images")}

    def primitive(self, primitive: Primitive) -> dict[str, Any]:
        places = np.ascontiguousarray(primitive.vertices * _TURNED, "<f4")
        bounds = {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
        attributes = {"POSITION": self._accessor(places, _ATTRIBUTES, **bounds)}
        for name, values in primitive.attributes.items():
            attributes[name] = self._accessor(values, _ATTRIBUTES, **({"normalized": True} if values.dtype == np.uint8 else {}))
        indices = self._accessor(primitive.faces.astype("<u4").reshape(-1, 1), _INDICES)
        material = {} if primitive.material is None else {"material": self._material(primitive)}
        return {"attributes": attributes, "indices": indices, **material}

    def _material(self, primitive: Primitive) -> int:
        surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": 1}
        material: dict[str, Any] = {"name": primitive.material, "doubleSided": True, "pbrMetallicRoughness": surface}
        if primitive.texture is not None:
            image = self._add("images", {"mimeType": "image/jpeg", "bufferView": self._view(primitive.texture)})
            surface["baseColorTexture"] = {"index": self._add("textures", {"source": image})}
            material["extensions"] = {"KHR_materials_unlit": {}}
        return self._add("materials", material)

    def _accessor(self, values: NDArray[Any], target: int, **told: Any) -> int:
        view = self._view(np.ascontiguousarray(values).tobytes(), target=target)
        kind, count = _KINDS[values.shape[1]], len(values)
        return self._add("accessors", {"bufferView": view, "componentType": _TYPES[values.dtype.str], "type": kind, "count": count, **told})

    def _view(self, content: bytes, **told: Any) -> int:
        start = len(self.binary)
        self.binary += content + b"\0" * (-len(content) % 4)
        return self._add("bufferViews", {"buffer": 0, "byteOffset": start, "byteLength": len(content), **told})

    def _add(self, name: str, told: dict[str, Any]) -> int:
        self.lists[name].append(told)
        return len(self.lists[name]) - 1


def rgba(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(V, 3) → (V, 4), opaque: an attribute's elements take whole words."""
    return np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], axis=1)
