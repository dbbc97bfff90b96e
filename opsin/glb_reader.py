"""The coloured vertices of a GLB as the service writes it, without a library for meshes or images.

A part under a texture has no `COLOR_0`, with which glTF would multiply it: the service writes its vertices' colours as `_COLOR`. Both are
linear light, as glTF has it.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {5121: "u1", 5123: "<u2", 5126: "<f4"}
"""glTF's component types that positions and colours come in."""
WIDTHS = {"VEC3": 3, "VEC4": 4}
GREY = 128


def vertices(file: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Places float32 (V, 3) and colours in sRGB uint8 (V, 3), in the file's own frame. Raises ValueError for what is no such file."""
    if file[:4] != b"glTF":
        raise ValueError("not a GLB file")
    (length,) = struct.unpack_from("<I", file, 12)
    scene, binary = json.loads(file[20 : 20 + length]), file[28 + length :]
    parts = [part["attributes"] for mesh in scene.get("meshes", ()) for part in mesh["primitives"]]
    places = [_accessor(scene, binary, part["POSITION"]).astype(np.float32) for part in parts]
    colours = [_colours(scene, binary, part) for part in parts]
    if not parts:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    return np.concatenate(places), np.concatenate(colours)


def _colours(scene: Any, binary: bytes, part: Any) -> NDArray[np.uint8]:
    """Grey where the file has none that can be read."""
    named = part.get("COLOR_0", part.get("_COLOR"))
    if named is None:
        return np.full((scene["accessors"][part["POSITION"]]["count"], 3), GREY, np.uint8)
    return _bytes(_accessor(scene, binary, named)[:, :3])


def _accessor(scene: Any, binary: bytes, number: int) -> NDArray[Any]:
    told = scene["accessors"][number]
    view = scene["bufferViews"][told["bufferView"]]
    kind, width = np.dtype(NUMBERS[told["componentType"]]), WIDTHS[told["type"]]
    start = view.get("byteOffset", 0) + told.get("byteOffset", 0)
    stride = view.get("byteStride", kind.itemsize * width)
    return np.ndarray((told["count"], width), kind, binary, start, (stride, kind.itemsize))


def _bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours in sRGB. Floats from 0 to 1 are linear light, as the standard has it (IEC 61966-2-1 makes sRGB of it); whole numbers are
    taken for sRGB, which the service wrote as bytes before, and others still do."""
    if colours.dtype.kind == "f":
        shares = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    else:
        shares = colours / np.iinfo(colours.dtype).max
    scaled: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return scaled
