"""Image with depth → the whole shape in space, including hidden sides (MCC).

The worker gets pixels uint8 (S, S, 3) and seen float32 (n, n, 3), the points of the pixels in normalised units, or, of a kept scene,
latent instead of pixels; asks int64 (2,), the limit of queries and the number of queries in a dense grid; and, to be returned unchanged,
the units: scale float32 (1,) and centre float32 (3,) in metres, and metric uint8 (1,), 0 if lengths are in units of the median depth,
since a network predicted it (`server/tasks/reconstruct/inputs.py`). It answers cells, occupancy and colours
(`models/systems/mcc/steps.py`), and latent and seen, which are kept as the scene and queried again. The front of the object
(`server/media/mcc_inputs.py`) is kept with them; no network reads it.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import QuerySpace
from models.systems.mcc.lattice import MAX_CELLS, Lattice
from models.systems.mcc.surfaces import HiddenSurface, VisibleSurface, reconstruct_hidden_surface
from models.systems.mcc.system import PATCH_SIZE, WINDOW, latent_values
from server.media import masks, mcc_inputs, meshes
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.tasks import base
from server.tasks.base import JSON, Arrays, FileAnswer, Item, Outputs, RequestPart, Shapes
from server.tasks.options import ExcessiveOption, InvalidOption
from server.tasks.reconstruct import inputs
from server.tasks.reconstruct.schema import (
    DEPTH_OPTIONS,
    MEDIA_TYPES,
    Format,
    Reconstruction,
    ReconstructOptions,
    ReconstructPlan,
    ReconstructPreview,
)

CELL_BYTES = 4 + 4 + 3
"""Size of an answer for each cell: index, occupancy, colour."""
SMALL_ARRAYS_BYTES = 4096
PREVIEW_BYTES = 7 * 20_000
GUESSED_POINT_SIZE = 0.7
"""Size of a guessed point, in spacings: vertices are so near to each other that the surface looks closed."""

Answer = tuple[NDArray[np.float32], bytes]
"""Points (P, 3) in metres, and the file."""


class ReconstructTask(
    base.Task[ReconstructOptions, ReconstructPlan],
    base.Plans[ReconstructOptions, ReconstructPlan],
    base.OffersFiles[ReconstructOptions, ReconstructPlan],
    base.ControlsBatching[ReconstructPlan],
    base.TakesSteps[ReconstructPlan],
    base.Previews[ReconstructPlan],
    base.EchoesArrays,
    base.TwoStage[ReconstructPlan],
    base.KeepsScenes[ReconstructOptions, ReconstructPlan],
    base.PresentsElsewhere[ReconstructPlan],
):
    """Reconstruct a shape from one image, with depth.

    Send `depth` with `fx` or `fov`, or `points`, or, if the bundle estimates depth, an image of an object alone. The object is what `mask`
    shows, else what is opaque in the image, else all that was seen. Frame: x to the right, y down, z forward, metres; a GLB has
    (x, -y, -z).
    """

    name = "reconstruct"
    parts = (
        RequestPart("image", "image", "RGB; if it has transparency, its opaque part is the object."),
        RequestPart(
            "depth", "file", "16-bit PNG in millimetres, or `.npy` of metres along the optical axis; 0 or NaN: not seen.", required=False
        ),
        RequestPart(
            "points", "file", "`.npy` float32 (H, W, 3), the point of each pixel in the camera's frame; NaN: not seen.", required=False
        ),
        RequestPart("mask", "image", "An image of the same size, white on the object.", required=False),
    )
    options = ReconstructOptions
    plan_type = ReconstructPlan
    answer = Reconstruction
    example = Reconstruction(
        scene="009d5e0c1b7a3f4e0f8a2b6c4d1e9f7a35",
        points=18231,
        queries=71904,
        scale=0.231,
        metric=True,
        bounds=[[-0.31, -0.22, 0.74], [0.29, 0.25, 1.21]],
        file=b"glTF\2\0\0\0",
    )
    media_types = (*MEDIA_TYPES.values(), JSON)
    kept_arrays = ("latent", "seen", "scale", "centre", "metric", *mcc_inputs.FRONT)
    echoed_arrays = unread_arrays = mcc_inputs.FRONT

    def plan(self, options: ReconstructOptions, spec: BundleSpec) -> ReconstructPlan:
        space = spec.space or QuerySpace()
        spacing = options.spacing or space.spacing
        if spacing > space.extent:
            raise InvalidOption("spacing", f"{spacing:g} is above {space.extent:g}, the extent of {spec.id} from the middle")
        if spacing < space.extent / MAX_CELLS or Lattice(space, spacing).index_count > MAX_CELLS:
            raise ExcessiveOption("spacing", f"{spacing:g} makes a grid of more than {MAX_CELLS} cells; use a larger one")
        if options.fov is not None and (options.fx is not None or options.fy is not None):
            raise InvalidOption("fov", "cannot be combined with a focal length: send one of them")
        if options.fov is not None and options.fov < inputs.MIN_FOV_DEGREES:
            raise InvalidOption("fov", f"{options.fov:g} degrees are too few for a camera: send at least {inputs.MIN_FOV_DEGREES:g}")
        if options.fy is not None and options.fx is None:
            raise InvalidOption("fx", "missing: fy needs it")
        fields = msgspec.structs.asdict(options) | {"spacing": spacing, "scene": secrets.token_hex(16)}
        return ReconstructPlan(**(space.model_dump() | fields))

    def with_cell(self, plan: ReconstructPlan, digits: str) -> ReconstructPlan:
        return msgspec.structs.replace(plan, scene=digits + plan.scene)

    def needs_first_stage(self, item: Item, spec: BundleSpec) -> bool:
        return inputs.estimates_depth(spec) and inputs.is_photograph(item)

    def prepare_first_stage(self, item: Item, plan: ReconstructPlan, spec: BundleSpec, decoder: ImageDecoder) -> Arrays:
        _query_limits(plan, decoder.limits.queries)
        inputs.source_of(item, plan, spec)
        sent = inputs.read_mask_part(item, decoder)
        with decoder.decode(item["image"], transparency=True) as image:
            inputs.check_camera(plan, *image.size)
            small = inputs.reduce_image(image)
            return {"photograph": inputs.photograph(small, inputs.photographed_object_mask(sent, np.asarray(small), image.size), spec)}

    def parts_from_first_stage(self, outputs: Outputs) -> Item:
        file = io.BytesIO()
        np.save(file, outputs["told"])
        return {inputs.PREDICTED_DEPTH: file.getvalue()}

    def prepare(self, item: Item, plan: ReconstructPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        """Raise InvalidOption, or MediaError that names the part, if parts do not go together."""
        asks, source = _query_limits(plan, decoder.limits.queries), inputs.source_of(item, plan, spec)
        # one after the other: a thread that waits for memory to decode must not hold any
        grid, sent = inputs.read_map(item, plan, source, decoder), inputs.read_mask_part(item, decoder)
        with decoder.decode(item["image"], transparency=True) as image:
            inputs.check_camera(plan, *image.size)
            small, original_size = inputs.reduce_image(image), image.size
            pixels = np.asarray(small)
            if source == inputs.PHOTOGRAPH:
                object_mask = inputs.photographed_object_mask(sent, pixels, original_size)
                grid = inputs.to_depth(grid, object_mask, spec, inputs.scaled_camera(plan, small, original_size).fx)
            points = inputs.points_of(grid, plan, source, small, original_size)
            mask = inputs.mask_of(sent, pixels, points, source, original_size)
            drawn = "mask" if sent is not None else None if masks.opaque(pixels) is None else "image"
            size, seen = spec.image_preprocess.image_size, _seen_size(spec)
            see = partial(mcc_inputs.build_view, pixels[..., :3], points, space=plan.space, image_size=size, seen_size=seen)
            view = inputs.view_of(see, points, mask, source, drawn)
            camera = inputs.camera_of(plan, source, points, mask, small, original_size)
            front = mcc_inputs.build_front(pixels[..., :3], points, mask, camera, view, plan.space, drawn=drawn is not None)
        return [
            {
                "pixels": view.pixels,
                "seen": view.seen,
                "asks": asks,
                "scale": np.array([view.scale], np.float32),
                "centre": view.centre,
                "metric": np.array([source != inputs.PHOTOGRAPH], np.uint8),
                **front,
            }
        ]

    def plan_followup(self, options: ReconstructOptions, spec: BundleSpec, scene: str) -> ReconstructPlan:
        for name in DEPTH_OPTIONS:
            if getattr(options, name) is not None:
                raise InvalidOption(name, "is for `depth`, which the scene has in it already")
        return msgspec.structs.replace(self.plan(options, spec), scene=scene)

    def prepare_followup(self, scene_arrays: Outputs, plan: ReconstructPlan, limits: MediaLimits) -> Arrays:
        if plan.surface == "joined" and mcc_inputs.front_from_outputs(scene_arrays) is None:
            raise InvalidOption("surface", "the scene has no view that could be joined with it: use `network`")
        return {**scene_arrays, "asks": _query_limits(plan, limits.queries)}

    def offered_media_types(self, request: ReconstructOptions | ReconstructPlan) -> tuple[str, ...]:
        """Return the media types. A requested format is the only file."""
        return self.media_types if request.format is None else (MEDIA_TYPES[request.format], JSON)

    def bucket(self, plan: ReconstructPlan, spec: BundleSpec, shapes: Shapes) -> str:
        """Return the bucket: scenes of all spacings and modes share steps."""
        return "photograph" if "photograph" in shapes else str(spec.image_preprocess.image_size)

    def arguments(self, plan: ReconstructPlan, shapes: Shapes) -> dict[str, Any]:
        if "photograph" in shapes:
            return {}
        names = ("spacing", "threshold", "mode", "scene")
        return {name: getattr(plan, name) for name in names} | {"space": plan.space.model_dump()}

    def steps(self, plan: ReconstructPlan, arrays: Arrays | None) -> int | None:
        return 1 if arrays is not None and "photograph" in arrays else None

    def scene_of(self, plan: ReconstructPlan) -> str:
        return plan.scene

    def present_in_subprocess(self, plan: ReconstructPlan, media_type: str) -> bool:
        return plan.surface != "network" or _format(plan, media_type) == "glb"

    def present(self, outputs: Sequence[Outputs], plan: ReconstructPlan, spec: BundleSpec, media_type: str) -> Reconstruction | FileAnswer:
        [job_outputs] = outputs
        front = None if plan.surface == "network" else mcc_inputs.front_from_outputs(job_outputs)
        kind = _format(plan, media_type)
        points, content = _network_answer(job_outputs, plan, kind) if front is None else _joined_answer(job_outputs, plan, front, kind)
        queries = int(job_outputs["queries"][0])
        scene = plan.scene if "kept" in job_outputs else None
        metric = bool(job_outputs["metric"][0]) if "metric" in job_outputs else True  # scenes that were kept by earlier versions are
        if media_type != JSON:
            location = {} if scene is None else {"Location": f"/v1/scenes/{scene}"}
            relative = {} if metric else {"X-Metric": "false"}
            return FileAnswer(content, {**location, "X-Points": str(len(points)), "X-Queries": str(queries), **relative}, MEDIA_TYPES[kind])
        bounds = [points.min(axis=0).tolist(), points.max(axis=0).tolist()] if len(points) else None
        return Reconstruction(scene, len(points), queries, float(job_outputs["scale"][0]), metric, bounds, content)

    def preview(self, arrays: Outputs, plan: ReconstructPlan, spec: BundleSpec) -> ReconstructPreview:
        points = _to_metres(plan.lattice.points(arrays["cells"]), arrays)
        return ReconstructPreview(int(arrays["level"]), meshes.to_ply(points, arrays["colours"], _spacing_of(arrays, plan)))

    def result_bound(self, plan: ReconstructPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound all cells of the grid, and the kept scene."""
        front = sum(arrays[name].nbytes for name in mcc_inputs.FRONT if name in arrays)
        return (
            plan.lattice.count * CELL_BYTES
            + 4 * latent_values(spec.config)
            + arrays["seen"].nbytes
            + front
            + PREVIEW_BYTES
            + SMALL_ARRAYS_BYTES
        )

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """Return a slanted plane that fills the image."""
        side, space = _seen_size(spec), spec.space or QuerySpace()
        across, down = np.meshgrid(*[np.linspace(-1.5, 1.5, side, dtype=np.float32)] * 2)
        size = spec.image_preprocess.image_size
        sample = {
            "pixels": np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8),
            "seen": np.stack([across, down, 0.3 * across + (2.0 if space.region == "half-ball" else 0.0)], axis=-1).astype(np.float32),
            "asks": np.array([MAX_CELLS, Lattice(space, space.spacing).count], np.int64),
            "scale": np.ones(1, np.float32),
            "centre": np.zeros(3, np.float32),
        }
        return (sample,)


def _query_limits(plan: ReconstructPlan, max_queries: int) -> NDArray[np.int64]:
    """Return the limit and the dense number of queries. Raises ExcessiveOption if the first level is above the limit."""
    lattice = plan.lattice
    first = lattice.count if plan.mode == "dense" else lattice.count // lattice.coarse_stride() ** 3
    if first > max_queries:
        raise ExcessiveOption(
            "spacing",
            f"{plan.spacing:g} takes {first} queries at first, above the limit of {max_queries} (OPSIN_MAX_QUERIES); use a larger one",
        )
    return np.array([max_queries, lattice.count], np.int64)


def _seen_size(spec: BundleSpec) -> int:
    """Side of the map of seen points that the network takes."""
    config = spec.config
    return int(config["image_size"]) // int(config.get("patch_size", PATCH_SIZE)) * int(config.get("window", WINDOW))


def _format(plan: ReconstructPlan, media_type: str) -> Format:
    """Return the option's format, else the accepted one, else a mesh."""
    accepted: Format | None = next((kind for kind, name in MEDIA_TYPES.items() if name == media_type), None)
    return plan.format or accepted or "glb"


def _network_answer(outputs: Outputs, plan: ReconstructPlan, kind: Format) -> Answer:
    """Present the occupied cells, and a surface between them and their empty neighbours."""
    lattice, occupied = plan.lattice, outputs["occupancy"] > plan.threshold
    places = np.stack(lattice.axis_indices(outputs["cells"].astype(np.int64)), axis=1)
    points, colours = _to_metres(lattice.points(outputs["cells"][occupied]), outputs), outputs["colours"][occupied]
    if kind == "ply":
        return points, meshes.to_ply(points, colours, _spacing_of(outputs, plan))
    if kind == "npz":
        arrays = {
            "points": points,
            "colours": colours,
            "occupancy": outputs["occupancy"][occupied],
            "cells": places[occupied].astype(np.int32),
        }
        return points, meshes.to_npz(arrays | _lattice_placement(outputs, plan))
    mesh = meshes.surface(meshes.Cells(places, outputs["occupancy"], outputs["colours"]), plan.threshold)
    units = np.array(lattice.origin, np.float32) + mesh.vertices * np.float32(lattice.pitch)
    return points, meshes.to_glb([meshes.Primitive(_to_metres(units, outputs), mesh.faces, {"COLOR_0": meshes.linear(mesh.colours)})])


def _joined_answer(outputs: Outputs, plan: ReconstructPlan, front: VisibleSurface, kind: Format) -> Answer:
    """Join the seen front, point by point, with the surface behind it that the network guesses. Heavy: run it in a child process."""
    pitch = plan.lattice.pitch
    guess = reconstruct_hidden_surface(plan.lattice, outputs["cells"], outputs["occupancy"], outputs["colours"], plan.threshold, front)
    photograph = mcc_inputs.front_colours(outputs, front)
    guessed = guess.vertices[~guess.joins_visible]
    points = _to_metres(np.concatenate([front.points, guessed]), outputs)
    if kind == "glb":
        return points, meshes.to_glb([_seen_primitive(outputs, front, photograph, pitch), _guessed_primitive(outputs, guess)])
    colours = np.concatenate([photograph, guess.colours[~guess.joins_visible]])
    seen = np.repeat(np.array([1, 0], np.uint8), (len(front.points), len(guessed)))
    if kind == "ply":
        width = float(np.median(front.pixel_widths) * outputs["scale"][0])
        return points, meshes.to_ply(points, colours, _spacing_of(outputs, plan), meshes.SeenPoints(seen, width))
    sizes = np.concatenate([np.minimum(front.pixel_widths, pitch), np.full(len(guessed), GUESSED_POINT_SIZE * pitch)]) * outputs["scale"][0]
    arrays = {"points": points, "colours": colours, "seen": seen, "sizes": sizes.astype(np.float32)}
    return points, meshes.to_npz(arrays | _lattice_placement(outputs, plan))


def _seen_primitive(outputs: Outputs, front: VisibleSurface, photograph: NDArray[np.uint8], pitch: float) -> meshes.Primitive:
    """Return the depth map as triangles under the photograph. glTF multiplies textures with COLOR_0, so colours have their own name."""
    mesh = front.mesh(pitch)
    height, width = front.mask.shape
    attributes = {
        "TEXCOORD_0": (mesh.corners / np.array([width, height])).astype(np.float32),
        "_SEEN": np.ones((len(mesh.vertices), 1), np.float32),
        "_COLOR": meshes.linear(photograph[mesh.pixels]),
    }
    return meshes.Primitive(_to_metres(mesh.vertices, outputs), mesh.faces, attributes, "seen", outputs["front"].tobytes())


def _guessed_primitive(outputs: Outputs, guess: HiddenSurface) -> meshes.Primitive:
    attributes = {"COLOR_0": meshes.linear(guess.colours), "_SEEN": np.zeros((len(guess.vertices), 1), np.float32)}
    return meshes.Primitive(_to_metres(guess.vertices, outputs), guess.faces, attributes, "guessed")


def _lattice_placement(outputs: Outputs, plan: ReconstructPlan) -> dict[str, NDArray[Any]]:
    """Return the position of the lattice."""
    origin, pitch = np.array(plan.lattice.origin, np.float32), np.array(plan.lattice.pitch, np.float32)
    return {"origin": origin, "pitch": pitch, "scale": outputs["scale"][0], "centre": outputs["centre"]}


def _spacing_of(outputs: Outputs, plan: ReconstructPlan) -> float:
    """Return the distance between cells in metres."""
    return float(plan.lattice.pitch * outputs["scale"][0])


def _to_metres(points: NDArray[np.float32], outputs: Outputs) -> NDArray[np.float32]:
    return mcc_inputs.to_metres(points, float(outputs["scale"][0]), outputs["centre"])
