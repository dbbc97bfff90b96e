"""Image with depth → the whole shape in space, also the sides that nobody saw (MCC).

The worker gets pixels uint8 (S, S, 3) and seen float32 (n, n, 3), the points of the pixels in normalised units, or, of a scene that is
kept, latent in place of pixels; asks int64 (2,), how many queries it may ask and how many a dense grid would; and, to be given back as
they are, what places the units in metres: scale float32 (1,) and centre float32 (3,), and metric uint8 (1,), 0 where lengths are in units
of the median depth, since a network told it (`server/tasks/reconstruct/monocular_depth.py`). It answers cells, occupancy and colours
(`models/systems/mcc/steps.py`), and latent and seen, which are kept as the scene and asked again. What was seen of the object
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
from models.systems.mcc.system import PATCH_SIZE, WINDOW, latent_values
from server.media import masks, mcc_inputs
from server.media import meshes as shapes
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.tasks.base import JSON, Arrays, FileAnswer, Item, Outputs, RequestPart, Shapes, Task
from server.tasks.capabilities import (
    ControlsBatching,
    EchoesArrays,
    KeepsScenes,
    OffersFiles,
    Plans,
    PresentsElsewhere,
    Previews,
    TakesSteps,
    TwoStage,
)
from server.tasks.options import ExcessiveOption, InvalidOption
from server.tasks.reconstruct import inputs, monocular_depth
from server.tasks.reconstruct.files import joined_answer, network_answer, spacing_of
from server.tasks.reconstruct.schema import (
    MEDIA_TYPES,
    OF_DEPTH,
    Format,
    Reconstruction,
    ReconstructOptions,
    ReconstructPlan,
    ReconstructPreview,
)

CELL_BYTES = 4 + 4 + 3
"""Bytes of an answer for each cell: index, occupancy, colour."""
SMALL_ARRAYS = 4096
PREVIEW_BYTES = 7 * 20_000


class Reconstruct(
    Task[ReconstructOptions, ReconstructPlan],
    Plans[ReconstructOptions, ReconstructPlan],
    OffersFiles[ReconstructOptions, ReconstructPlan],
    ControlsBatching[ReconstructPlan],
    TakesSteps[ReconstructPlan],
    Previews[ReconstructPlan],
    EchoesArrays,
    TwoStage[ReconstructPlan],
    KeepsScenes[ReconstructOptions, ReconstructPlan],
    PresentsElsewhere[ReconstructPlan],
):
    """Reconstruct a shape from one image, with depth.

    Send `depth` with `fx` or `fov`, or `points`, or, where the bundle tells depth, an image of an object alone. The object is what `mask`
    shows, else what is opaque in the image, else all that was seen. Frame: x to the right, y down, z forward, metres; a GLB has
    (x, -y, -z).
    """

    name = "reconstruct"
    parts = (
        RequestPart("image", "image", "RGB; where it is transparent, its opaque part is the object."),
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

    def plan(self, asked: ReconstructOptions, spec: BundleSpec) -> ReconstructPlan:
        space = spec.space or QuerySpace()
        spacing = asked.spacing or space.spacing
        if spacing > space.extent:
            raise InvalidOption("spacing", f"{spacing:g} is above {space.extent:g}, how far {spec.id} looks from the middle")
        if spacing < space.extent / MAX_CELLS or Lattice(space, spacing).index_count > MAX_CELLS:
            raise ExcessiveOption("spacing", f"{spacing:g} makes a grid of more than {MAX_CELLS} cells; use a larger one")
        if asked.fov is not None and (asked.fx is not None or asked.fy is not None):
            raise InvalidOption("fov", "given beside a focal length: send one of them")
        if asked.fov is not None and asked.fov < inputs.NARROWEST:
            raise InvalidOption("fov", f"{asked.fov:g} degrees are too few for a camera: send at least {inputs.NARROWEST:g}")
        if asked.fy is not None and asked.fx is None:
            raise InvalidOption("fx", "missing beside fy")
        given = msgspec.structs.asdict(asked) | {"spacing": spacing, "scene": secrets.token_hex(16)}
        return ReconstructPlan(**(space.model_dump() | given))

    def with_partition(self, plan: ReconstructPlan, partition: str) -> ReconstructPlan:
        return msgspec.structs.replace(plan, scene=partition + plan.scene)

    def needs_first_stage(self, item: Item, spec: BundleSpec) -> bool:
        return monocular_depth.tells_depth(spec) and inputs.is_photograph(item)

    def prepare_first_stage(self, item: Item, plan: ReconstructPlan, spec: BundleSpec, decoder: ImageDecoder) -> Arrays:
        _asks(plan, decoder.limits.queries)
        inputs.source_of(item, plan, spec)
        sent = inputs.sent_mask(item, decoder)
        with decoder.decode(item["image"], transparency=True) as image:
            inputs.check_camera(plan, *image.size)
            small = inputs.reduced(image)
            return {"photograph": monocular_depth.photograph(small, inputs.photographed(sent, np.asarray(small), image.size), spec)}

    def parts_from_first_stage(self, outputs: Outputs) -> Item:
        file = io.BytesIO()
        np.save(file, outputs["told"])
        return {inputs.TOLD: file.getvalue()}

    def prepare(self, item: Item, plan: ReconstructPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        """Raises InvalidOption or MediaError that names the part where parts do not go together."""
        asks, source = _asks(plan, decoder.limits.queries), inputs.source_of(item, plan, spec)
        # one after the other: whoever waits for room to decode must not hold any
        grid, sent = inputs.read_map(item, plan, source, decoder), inputs.sent_mask(item, decoder)
        with decoder.decode(item["image"], transparency=True) as image:
            inputs.check_camera(plan, *image.size)
            small, whole = inputs.reduced(image), image.size
            pixels = np.asarray(small)
            if source == inputs.PHOTOGRAPH:
                shown = inputs.photographed(sent, pixels, whole)
                grid = monocular_depth.to_depth(grid, shown, spec, inputs.scaled_camera(plan, small, whole).fx)
            points = inputs.points_of(grid, plan, source, small, whole)
            mask = inputs.mask_of(sent, pixels, points, source, whole)
            drawn = "mask" if sent is not None else None if masks.opaque(pixels) is None else "image"
            size, seen = spec.image_preprocess.image_size, _seen_size(spec)
            see = partial(mcc_inputs.build_view, pixels[..., :3], points, space=plan.space, image_size=size, seen_size=seen)
            view = inputs.view_of(see, points, mask, source, drawn)
            camera = inputs.camera_of(plan, source, points, mask, small, whole)
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
        for name in OF_DEPTH:
            if getattr(options, name) is not None:
                raise InvalidOption(name, "is for `depth`, which the scene has in it already")
        return msgspec.structs.replace(self.plan(options, spec), scene=scene)

    def prepare_followup(self, kept: Outputs, plan: ReconstructPlan, limits: MediaLimits) -> Arrays:
        if plan.surface == "joined" and mcc_inputs.front_from_outputs(kept) is None:
            raise InvalidOption("surface", "the scene has no view that could be joined with it: ask for `network`")
        return {**kept, "asks": _asks(plan, limits.queries)}

    def offered_media_types(self, request: ReconstructOptions | ReconstructPlan) -> tuple[str, ...]:
        """A format that was asked for is the only file."""
        return self.media_types if request.format is None else (MEDIA_TYPES[request.format], JSON)

    def bucket(self, plan: ReconstructPlan, spec: BundleSpec, shapes: Shapes) -> str:
        """Scenes of all spacings and modes take their steps together."""
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
        [found] = outputs
        front, kind = None if plan.surface == "network" else mcc_inputs.front_from_outputs(found), _format(plan, media_type)
        points, content = network_answer(found, plan, kind) if front is None else joined_answer(found, plan, front, kind)
        asked = int(found["queries"][0])
        scene = plan.scene if "kept" in found else None
        metric = bool(found["metric"][0]) if "metric" in found else True  # scenes that were kept by earlier versions are
        if media_type != JSON:
            location = {} if scene is None else {"Location": f"/v1/scenes/{scene}"}
            relative = {} if metric else {"X-Metric": "false"}
            return FileAnswer(content, {**location, "X-Points": str(len(points)), "X-Queries": str(asked), **relative}, MEDIA_TYPES[kind])
        bounds = [points.min(axis=0).tolist(), points.max(axis=0).tolist()] if len(points) else None
        return Reconstruction(scene, len(points), asked, float(found["scale"][0]), metric, bounds, content)

    def preview(self, arrays: Outputs, plan: ReconstructPlan, spec: BundleSpec) -> ReconstructPreview:
        points = mcc_inputs.to_metres(plan.lattice.points(arrays["cells"]), float(arrays["scale"][0]), arrays["centre"])
        return ReconstructPreview(int(arrays["level"]), shapes.to_ply(points, arrays["colours"], spacing_of(arrays, plan)))

    def result_bound(self, plan: ReconstructPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """All cells of the grid, and what is kept of the scene."""
        front = sum(arrays[name].nbytes for name in mcc_inputs.FRONT if name in arrays)
        return (
            plan.lattice.count * CELL_BYTES + 4 * latent_values(spec.config) + arrays["seen"].nbytes + front + PREVIEW_BYTES + SMALL_ARRAYS
        )

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """A slanted plane fills the image."""
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


def _asks(plan: ReconstructPlan, most: int) -> NDArray[np.int64]:
    """Raises ExcessiveOption for what is too much before anything is asked."""
    lattice = plan.lattice
    first = lattice.count if plan.mode == "dense" else lattice.count // lattice.coarse_stride() ** 3
    if first > most:
        raise ExcessiveOption(
            "spacing",
            f"{plan.spacing:g} asks {first} queries to begin with, above the limit of {most} (OPSIN_MAX_QUERIES); use a larger one",
        )
    return np.array([most, lattice.count], np.int64)


def _seen_size(spec: BundleSpec) -> int:
    """Side of the map of seen points that the network takes."""
    config = spec.config
    return int(config["image_size"]) // int(config.get("patch_size", PATCH_SIZE)) * int(config.get("window", WINDOW))


def _format(plan: ReconstructPlan, media_type: str) -> Format:
    """The option's, else what was accepted, else a mesh."""
    accepted: Format | None = next((kind for kind, name in MEDIA_TYPES.items() if name == media_type), None)
    return plan.format or accepted or "glb"
