"""Reconstruction for the client: the options, the requests, and the answer."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from opsin import display
from opsin.api_request import ApiRequest, CallOptions, build_request, check_names
from opsin.image_encoding import BinaryFile, ImageLike, encode, encode_mask
from opsin.point_rendering import ColouredPointCloud
from opsin.results import Timing, common_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray
MapLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | np.ndarray[Any, Any]
"""A map of depth or points: a file, its bytes, or an array. Depth: float (H, W) in metres or uint16 (H, W) in millimetres; points: float
(H, W, 3)."""
DEFAULT_GREY = 128


class SceneOptions(CallOptions, total=False):
    """Options for a scene; None is the service's default. `docs/tasks/reconstruction.md` explains each of them."""

    spacing: float | None
    threshold: float | None
    mode: Literal["adaptive", "dense"] | None
    surface: Literal["joined", "network"] | None
    format: Literal["glb", "ply", "npz"] | None


class ReconstructOptions(SceneOptions, total=False):
    points: MapLike | None
    mask: ImageLike | None
    model: str | None
    """`name` or `name@version`."""
    fx: float | None
    fy: float | None
    cx: float | None
    cy: float | None
    fov: float | None
    depth_scale: float | None


@dataclass(frozen=True, slots=True)
class Reconstruction(display.HtmlResult):
    """A shape, and how it was computed. Points are in the camera's frame: x to the right, y down, z forward, in metres."""

    file: bytes = field(repr=False)
    """GLB, PLY or NPZ, as requested; coordinates in a GLB are (x, -y, -z)."""
    scene: str | None
    """ID of the scene, for `Client.scene`; it is kept for a while. None if it was not stored."""
    count: int
    """Number of points: occupied cells or, with `surface="joined"`, the seen points and the predicted ones."""
    queries: int
    """Number of points in space at which the network was evaluated."""
    scale: float
    """Length in metres of the unit of `spacing`."""
    metric: bool
    """Whether lengths are in metres. False if a network estimated the depth: they are in units of its median."""
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    """Opposite corners of the points' bounding box; None if there are no points."""
    timing: Timing
    model: str
    version: str
    request_id: str
    note: str = ""
    """Warning about the bundle's answers; see `Classification.note`."""

    @property
    def points(self) -> NDArray[np.float32]:
        """The points of a PLY or NPZ: float32 (P, 3). Raises ValueError for a GLB, which holds a mesh."""
        return self._cells()[0]

    @property
    def colours(self) -> NDArray[np.uint8]:
        """Colours of the points: uint8 (P, 3)."""
        return self._cells()[1]

    @property
    def seen(self) -> NDArray[np.bool_] | None:
        """Whether each point was seen (P,), or is predicted. None if the answer does not say (`surface="network"`)."""
        return self._cells()[2]

    def cloud(self) -> ColouredPointCloud:
        """Return the points of an NPZ with their colours and widths, for drawing. Raises ValueError for other files."""
        if not self.file.startswith(b"PK"):
            raise ValueError('only an NPZ has the widths of points: use format="npz"')
        with np.load(BytesIO(self.file), allow_pickle=False) as arrays:
            points, spacing = arrays["points"], arrays["pitch"] * arrays["scale"]
            sizes = arrays["sizes"] if "sizes" in arrays else np.full(len(points), spacing, np.float32)
            return ColouredPointCloud(points, arrays["colours"], sizes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        Path(path).write_bytes(self.file)

    def _repr_html_(self) -> str:
        """Draw the points, or the vertices of a mesh."""
        points, colours = self._vertices() if self.file.startswith(b"glTF") else self._cells()[:2]
        facts = f"{self.count:,} points, {self.queries:,} queries, {self.model}@{self.version}, {self.timing.total_ms:.0f} ms"
        return display.render_points(points, colours, facts, self.note)

    def _vertices(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return positions (V, 3) in the camera's frame and colours (V, 3) of a GLB's vertices."""
        positions, colours = read_vertices(self.file)
        return positions * np.array([1, -1, -1], np.float32), colours

    def _cells(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Return points (P, 3), colours (P, 3) and which of them were seen (P,)."""
        if self.file.startswith(b"PK"):
            with np.load(BytesIO(self.file), allow_pickle=False) as arrays:
                return arrays["points"], arrays["colours"], arrays["seen"] != 0 if "seen" in arrays else None
        if self.file.startswith(b"ply"):
            header, _, content = self.file.partition(b"end_header\n")
            has_seen = b"uchar seen" in header
            rows = np.frombuffer(content, [("position", "<f4", 3), ("colour", "u1", 3), *([("seen", "u1")] if has_seen else [])])
            return rows["position"], rows["colour"], rows["seen"] != 0 if has_seen else None
        raise ValueError('a GLB holds a mesh: use format="ply" or "npz" for points')


def reconstruct_request(image: ImageLike, depth: MapLike | None, options: ReconstructOptions) -> ApiRequest:
    """Return the request. Raises TypeError, ValueError or OSError for inputs that cannot be sent."""
    check_names("reconstruct", options, ReconstructOptions)
    request_options: dict[str, Any] = dict(options)
    points, mask = request_options.pop("points", None), request_options.pop("mask", None)
    parts = {"image": encode(image)}
    if depth is not None:
        parts["depth"] = _encode_map(depth, "depth", 2)
    if points is not None:
        parts["points"] = _encode_map(points, "points", 3)
    if mask is not None:
        parts["mask"] = encode_mask(mask)
    return build_request("/v1/reconstruct", request_options, parts=parts)


def scene_request(scene: str, options: SceneOptions) -> ApiRequest:
    check_names("scene", options, SceneOptions)
    return build_request(f"/v1/scenes/{quote(scene, safe='')}", options, method="GET")


def reconstruction(answer: Mapping[str, Any]) -> Reconstruction:
    """Read the body of `POST /v1/reconstruct`."""
    bounds = answer["bounds"]
    return Reconstruction(
        file=base64.b64decode(answer["file"]),
        scene=answer["scene"],
        count=answer["points"],
        queries=answer["queries"],
        scale=answer["scale"],
        metric=answer.get("metric", True),
        bounds=None if bounds is None else (tuple(bounds[0]), tuple(bounds[1])),
        **common_fields(answer),
    )


def _encode_map(values: MapLike, name: str, dimensions: int) -> bytes:
    """Return the content of a file as it is, or an array as `.npy` in metres."""
    if not isinstance(values, np.ndarray):
        return encode(values, name)
    array = values
    if array.ndim != dimensions:
        raise ValueError(f"{name}: an array of {dimensions} dimensions, not {array.shape}")
    if name == "depth" and array.dtype == np.uint16:
        array = array.astype(np.float32) / 1000
    if array.dtype.kind != "f":
        raise ValueError(
            f"{name}: an array of floats in metres{', or of uint16 in millimetres' if name == 'depth' else ''}, not {array.dtype}"
        )
    file = BytesIO()
    np.save(file, array.astype(np.float32), allow_pickle=False)
    return file.getvalue()


def read_vertices(file: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read positions float32 (V, 3), in the file's frame, and sRGB colours uint8 (V, 3). Raises ValueError if it is not a GLB file."""
    if file[:4] != b"glTF":
        raise ValueError("not a GLB file")
    (length,) = struct.unpack_from("<I", file, 12)
    scene, binary = json.loads(file[20 : 20 + length]), file[28 + length :]
    parts = [part["attributes"] for mesh in scene.get("meshes", ()) for part in mesh["primitives"]]
    positions = [_accessor(scene, binary, part["POSITION"]) for part in parts]
    colours = [_colours(scene, binary, part) for part in parts]
    if not parts:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    return np.concatenate(positions), np.concatenate(colours)


def _colours(scene: Any, binary: bytes, part: Any) -> NDArray[np.uint8]:
    """Read the colours (V, 3) of a part; grey if it has none."""
    named = part.get("COLOR_0", part.get("_COLOR"))
    if named is None:
        return np.full((scene["accessors"][part["POSITION"]]["count"], 3), DEFAULT_GREY, np.uint8)
    return _to_srgb(_accessor(scene, binary, named))


def _accessor(scene: Any, binary: bytes, number: int) -> NDArray[np.float32]:
    """Read an accessor of three float32 (V, 3), as the service writes positions and colours."""
    accessor = scene["accessors"][number]
    start = scene["bufferViews"][accessor["bufferView"]]["byteOffset"]
    return np.frombuffer(binary, "<f4", 3 * accessor["count"], start).reshape(-1, 3)


def _to_srgb(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert linear light from 0 to 1 to sRGB, uint8, by IEC 61966-2-1."""
    shares = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    scaled: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return scaled
