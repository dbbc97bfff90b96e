"""Reconstruction for the client: what can be asked, the request, and the answer."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import quote

import numpy as np

from opsin import display
from opsin.api_request import Call, call_of, check_names
from opsin.glb_reader import vertices
from opsin.image_encoding import BinaryFile, Picture, encoded, encoded_mask
from opsin.point_rendering import Cloud
from opsin.results import Timing, timing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SceneOptions(TypedDict, total=False):
    """Options for a scene. One that is left out or None is the service's default. `docs/tasks/reconstruction.md` explains each."""

    spacing: float | None
    threshold: float | None
    mode: Literal["adaptive", "dense"] | None
    surface: Literal["joined", "network"] | None
    format: Literal["glb", "ply", "npz"] | None
    priority: Literal["high", "normal", "low"] | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


class ReconstructOptions(SceneOptions, total=False):
    model: str | None
    """`name` or `name@version`."""
    fx: float | None
    fy: float | None
    cx: float | None
    cy: float | None
    fov: float | None
    depth_scale: float | None


Map = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | np.ndarray[Any, Any]
"""A map of depth or points: a file, its bytes, or an array. Depth: float (H, W) in metres or uint16 (H, W) in millimetres; points: float
(H, W, 3)."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A shape, and how it came about. Points are in the camera's frame: x to the right, y down, z forward, in metres."""

    file: bytes = field(repr=False)
    """GLB, PLY or NPZ, as was asked; a GLB has (x, -y, -z)."""
    scene: str | None
    """Id under which the scene can be asked again for a while; None where it was not kept."""
    count: int
    """Number of points: occupied cells, or, joined, the points that were seen and those of the guess."""
    queries: int
    """Number of points of space that were asked."""
    scale: float
    """Metres of a unit, in which `spacing` is."""
    metric: bool
    """False where a network told depth: lengths are in units of its median instead of metres."""
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    """Corners of the points; None where there are none."""
    timing: Timing
    model: str
    version: str
    request_id: str
    note: str = ""
    """As `Classification.note`."""

    @property
    def points(self) -> NDArray[np.float32]:
        """float32 (P, 3). Of a PLY or NPZ. Raises ValueError for a GLB, which holds a mesh."""
        return self._cells()[0]

    @property
    def colours(self) -> NDArray[np.uint8]:
        """Colours of the points: uint8 (P, 3)."""
        return self._cells()[1]

    @property
    def seen(self) -> NDArray[np.bool_] | None:
        """Whether each point was seen, (P,), or is guessed. None where the answer does not tell (`surface="network"`)."""
        return self._cells()[2]

    def cloud(self) -> Cloud:
        """The points as they are drawn: with how wide each is. Of an NPZ. Raises ValueError for other files."""
        if not self.file.startswith(b"PK"):
            raise ValueError('only an NPZ tells how wide points are: ask with format="npz"')
        with np.load(BytesIO(self.file), allow_pickle=False) as arrays:
            points, spacing = arrays["points"], arrays["pitch"] * arrays["scale"]
            sizes = arrays["sizes"] if "sizes" in arrays else np.full(len(points), spacing, np.float32)
            return Cloud(points, arrays["colours"], sizes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        Path(path).write_bytes(self.file)

    def _repr_html_(self) -> str:
        """Points, or the vertices of a mesh."""
        points, colours = self._vertices() if self.file.startswith(b"glTF") else self._cells()[:2]
        facts = f"{self.count:,} points of {self.queries:,} places asked, {self.model}@{self.version}, {self.timing.total_ms:.0f} ms"
        return display.cloud(points, colours, facts, self.note)

    def show(self) -> Path | None:
        """Show it in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)

    def _vertices(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """In the camera's frame."""
        places, colours = vertices(self.file)
        return places * np.array([1, -1, -1], np.float32), colours

    def _cells(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_] | None]:
        if self.file.startswith(b"PK"):
            with np.load(BytesIO(self.file), allow_pickle=False) as arrays:
                return arrays["points"], arrays["colours"], arrays["seen"] != 0 if "seen" in arrays else None
        if self.file.startswith(b"ply"):
            header, _, content = self.file.partition(b"end_header\n")
            told = b"uchar seen" in header
            rows = np.frombuffer(content, [("place", "<f4", 3), ("colour", "u1", 3), *([("seen", "u1")] if told else [])])
            return rows["place"], rows["colour"], rows["seen"] != 0 if told else None
        raise ValueError('a GLB holds a mesh: ask with format="ply" or "npz" for points')


def reconstruct_call(image: Picture, depth: Map | None, points: Map | None, mask: Picture | None, options: ReconstructOptions) -> Call:
    """Raises TypeError, ValueError or OSError for what cannot be sent."""
    check_names("reconstruct", options, ReconstructOptions)
    parts = {"image": encoded(image)}
    if depth is not None:
        parts["depth"] = _map(depth, "depth", 2)
    if points is not None:
        parts["points"] = _map(points, "points", 3)
    if mask is not None:
        parts["mask"] = encoded_mask(mask)
    return call_of("/v1/reconstruct", options, parts=parts)


def scene_call(scene: str, options: SceneOptions) -> Call:
    check_names("scene", options, SceneOptions)
    return call_of(f"/v1/scenes/{quote(scene, safe='')}", options, method="GET")


def reconstruction(answer: Mapping[str, Any]) -> Reconstruction:
    """The body of `POST /v1/reconstruct`."""
    bounds = answer["bounds"]
    return Reconstruction(
        file=base64.b64decode(answer["file"]),
        scene=answer["scene"],
        count=answer["points"],
        queries=answer["queries"],
        scale=answer["scale"],
        metric=answer.get("metric", True),
        bounds=None if bounds is None else (tuple(bounds[0]), tuple(bounds[1])),
        timing=timing_of(answer),
        model=answer["model"],
        version=answer["version"],
        request_id=answer["id"],
        note=answer.get("note", ""),
    )


def _map(given: Map, name: str, dimensions: int) -> bytes:
    """A file's bytes as they are; an array as `.npy`, in metres."""
    if not isinstance(given, np.ndarray):
        return encoded(given, name)
    array = given
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
