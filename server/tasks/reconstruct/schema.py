"""Schema of reconstruction: its options, its plan, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.bundle_schema import QuerySpace
from models.systems.mcc.lattice import Lattice
from server.tasks.options import RequestOptions

Format = Literal["glb", "ply", "npz"]
Mode = Literal["adaptive", "dense"]
Surface = Literal["joined", "network"]

MEDIA_TYPES: Mapping[Format, str] = {"glb": "model/gltf-binary", "ply": "application/x-ply", "npz": "application/x-npz"}
DEPTH_OPTIONS = ("fx", "fy", "cx", "cy", "fov", "depth_scale")
"""Options that do not apply to `points`."""
FAR_AXIS = 1e9
"""Maximum absolute coordinate of an optical axis, which is stored as float32: no accepted focal length is as large."""
AXIS = dict.fromkeys(("values", "words"), "a number from -1e9 to 1e9") | {"default": "the middle"}


class ReconstructOptions(RequestOptions, frozen=True, kw_only=True):
    fx: Annotated[
        float | None,
        Meta(
            gt=0,
            description="Focal length in pixels of the image. For `depth`.",
            extra={"values": "above 0 and at most 5,729 times the image's width"},
        ),
    ] = None
    fy: Annotated[
        float | None,
        Meta(
            gt=0,
            description="Vertical focal length in pixels of the image.",
            extra={"values": "above 0 and at most 5,729 times the image's height", "default": "`fx`"},
        ),
    ] = None
    cx: Annotated[float | None, Meta(ge=-FAR_AXIS, le=FAR_AXIS, description="Column of the optical axis, in pixels.", extra=AXIS)] = None
    cy: Annotated[float | None, Meta(ge=-FAR_AXIS, le=FAR_AXIS, description="Row of the optical axis, in pixels.", extra=AXIS)] = None
    fov: Annotated[
        float | None,
        Meta(
            gt=0,
            lt=180,
            description="Horizontal field of view in degrees, instead of `fx`.",
            extra={"values": "above 0 and below 180", "words": "degrees above 0 and below 180", "default": "60 for an image without depth"},
        ),
    ] = None
    depth_scale: Annotated[
        float | None,
        Meta(
            ge=0.1,  # all steps of 16 bits lie within `depth.MAX_DEPTH_M`
            le=1e12,  # picometres
            description="Steps of a 16-bit depth map in a metre.",
            extra=dict.fromkeys(("values", "words"), "a number from 0.1 to 1e12") | {"default": "1000: millimetres"},
        ),
    ] = None
    spacing: Annotated[
        float | None,
        Meta(gt=0, description="Distance between cells, in units of the spread of the seen points.", extra={"default": "the bundle's"}),
    ] = None
    threshold: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="Probability above which a cell is occupied.",
            extra={"values": "above 0 and below 1", "words": "a number above 0 and below 1"},
        ),
    ] = 0.1
    mode: Annotated[Mode, Meta(description="Query cells from coarse to fine, or every cell.")] = "adaptive"
    surface: Annotated[
        Surface | None,
        Meta(
            description="The seen surface joined with the network's rest, or all of it from the network.",
            extra={"default": "`joined`, or `network` if no camera fits `points`"},
        ),
    ] = None
    format: Annotated[
        Format | None, Meta(description="A mesh, its cells as points, or arrays.", extra={"default": "from `Accept`, else `glb`"})
    ] = None


class ReconstructPlan(msgspec.Struct, frozen=True):
    fx: float | None
    fy: float | None
    cx: float | None
    cy: float | None
    fov: float | None
    depth_scale: float | None
    spacing: float
    threshold: float
    mode: Mode
    format: Format | None
    scene: str
    """128 random bits: the name under which the scene's encoding is kept."""
    region: Literal["cube", "half-ball"]
    extent: float
    reach: float
    margin: int
    source_size: int | None
    surface: Surface | None = "network"
    """None stands for `joined` if that is possible. Stored plans without it keep their meaning."""

    @property
    def space(self) -> QuerySpace:
        return QuerySpace(
            region=self.region, extent=self.extent, reach=self.reach, margin=self.margin, source_size=self.source_size, spacing=self.spacing
        )

    @property
    def lattice(self) -> Lattice:
        return Lattice(self.space, self.spacing)


class Reconstruction(msgspec.Struct, frozen=True):
    """A reconstructed shape. `scene` can be queried again under `/v1/scenes/{scene}`, and is null if it was not kept.

    `points` counts the points of the answer; `scale` is the metres of a unit; `metric` is false if lengths are in units of the median depth
    instead; `bounds` are the corners of its points in the camera's frame, null if there are none; `file` is base64."""

    scene: str | None
    points: int
    queries: int
    scale: float
    metric: bool
    bounds: list[list[float]] | None
    file: bytes


class ReconstructPreview(msgspec.Struct, frozen=True):
    """Points that were found by the end of a level, thinned: a PLY in base64."""

    level: int
    points: bytes
