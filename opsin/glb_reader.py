"""A reader for the coloured vertices of the GLB files that the service writes, without a library for meshes or images.

A textured part has no `COLOR_0`, since glTF would multiply the texture by it; the service writes its vertices' colours as `_COLOR`. Both
are linear light, as in glTF.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMPONENT_DTYPES = {5121: "u1", 5123: "<u2", 5126: "<f4"}
"""glTF's component type of positions and colours → NumPy's."""
COMPONENT_COUNTS = {"VEC3": 3, "VEC4": 4}
DEFAULT_GREY = 128


def read_vertices(file: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read positions float32 (V, 3), in the file's frame, and sRGB colours uint8 (V, 3). Raises ValueError if it is not a GLB file."""
    if file[:4] != b"glTF":
        raise ValueError("not a GLB file")
    (length,) = struct.unpack_from("<I", file, 12)
    scene, binary = json.loads(file[20 : 20 + length]), file[28 + length :]
    parts = [part["attributes"] for mesh in scene.get("meshes", ()) for part in mesh["primitives"]]
    positions = [_accessor(scene, binary, part["POSITION"]).astype(np.float32) for part in parts]
    colours = [_colours(scene, binary, part) for part in parts]
    if not parts:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    return np.concatenate(positions), np.concatenate(colours)


def _colours(scene: Any, binary: bytes, part: Any) -> NDArray[np.uint8]:
    """Read the colours (V, 3) of a part; grey if it has none."""
    named = part.get("COLOR_0", part.get("_COLOR"))
    if named is None:
        return np.full((scene["accessors"][part["POSITION"]]["count"], 3), DEFAULT_GREY, np.uint8)
    return _to_srgb(_accessor(scene, binary, named)[:, :3])


def _accessor(scene: Any, binary: bytes, number: int) -> NDArray[Any]:
    accessor = scene["accessors"][number]
    view = scene["bufferViews"][accessor["bufferView"]]
    kind, width = np.dtype(COMPONENT_DTYPES[accessor["componentType"]]), COMPONENT_COUNTS[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", kind.itemsize * width)
    return np.ndarray((accessor["count"], width), kind, binary, start, (stride, kind.itemsize))


def _to_srgb(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert colours to sRGB, uint8. Floats from 0 to 1 are linear light, as in glTF, and converted by IEC 61966-2-1. Integers are taken
    for sRGB, which earlier versions of the service wrote as bytes, and other programs still do."""
    if colours.dtype.kind == "f":
        shares = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    else:
        shares = colours / np.iinfo(colours.dtype).max
    scaled: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return scaled
