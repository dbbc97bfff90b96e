"""The parts of a reconstruction's request → points and the mask of what counts, or an error that names the part."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec
from models.systems.mcc.visible_surface import fit_camera
from server.media import depth, masks, mcc_inputs, npy
from server.media.depth import PinholeCamera, PointMap
from server.media.images import ImageDecoder
from server.media.limits import InvalidPart, naming_part
from server.media.masks import PixelMask
from server.tasks.base import Item
from server.tasks.options import InvalidOption
from server.tasks.reconstruct import monocular_depth
from server.tasks.reconstruct.schema import OF_DEPTH, ReconstructPlan

PHOTOGRAPH = "image"
"""The part that tells where the pixels are, where neither depth nor points were sent."""
TOLD = "told"
"""Stands among the parts of an item for what a network told of its depth, a `.npy` file."""
USUAL_FOV = 60.0
"""Horizontal field of view of a photograph, in degrees, unless its sender says otherwise."""
NARROWEST = 0.01
"""Degrees of a field of view."""
MASKS = 2
"""Bytes of a pixel of a mask beside the picture that it came as: bright and opaque pixels."""
MOST_PIXELS = 2**21
"""Pixels of an image as it is worked on: some 80 bytes of memory each, far more pixels than a network sees."""


def is_photograph(item: Item) -> bool:
    return "depth" not in item and "points" not in item


def source_of(item: Item, plan: ReconstructPlan, spec: BundleSpec) -> str:
    """The part that tells where the pixels are. Raises InvalidOption."""
    if "depth" in item and "points" in item:
        raise InvalidOption("points", "given beside depth: send one of them")
    if "points" in item:
        for name in OF_DEPTH:
            if getattr(plan, name) is not None:
                raise InvalidOption(name, "is for `depth`; points need no camera")
        return "points"
    if is_photograph(item):
        if not monocular_depth.tells_depth(spec):
            raise InvalidOption("depth", f"missing: send depth with fx or fov, or points; {spec.id} names no member that tells depth")
        if plan.depth_scale is not None:
            raise InvalidOption("depth_scale", "is for `depth`, which was not sent")
        return PHOTOGRAPH
    if plan.fx is None and plan.fov is None:
        raise InvalidOption("fx", "missing: depth needs fx (fy, cx, cy) in pixels, or fov in degrees")
    return "depth"


def read_map(item: Item, plan: ReconstructPlan, source: str, decoder: ImageDecoder) -> NDArray[np.float32]:
    """Depth (h, w) or points (h, w, 3), or what was told of a photograph (S, S). Raises MediaError and InvalidOption."""
    if source == PHOTOGRAPH:
        return npy.read(item[TOLD], npy.read_header(item[TOLD]))
    with naming_part(source):
        if source == "points":
            return depth.read_points(item["points"], decoder)
        if plan.depth_scale is not None and item["depth"].startswith(npy.MAGIC):
            raise InvalidOption("depth_scale", "is for 16-bit PNG; a .npy file holds metres")
        return depth.read_depth(item["depth"], decoder, plan.depth_scale)


def reduced(image: Image.Image) -> Image.Image:
    """The image, smaller where it has more than MOST_PIXELS."""
    share = math.sqrt(MOST_PIXELS / (image.width * image.height))
    if share >= 1:
        return image
    width, height = max(1, math.floor(image.width * share)), max(1, math.floor(image.height * share))
    width = min(width, MOST_PIXELS // height)
    return image.resize((width, min(height, MOST_PIXELS // width)), Image.Resampling.BOX)


def points_of(grid: NDArray[np.float32], plan: ReconstructPlan, source: str, image: Image.Image, whole: tuple[int, int]) -> PointMap:
    """(H, W, 3) of an image, which was `whole` pixels wide and high when its camera was described. Raises MediaError and InvalidOption."""
    with naming_part(source):
        grid = depth.to_image_size(grid, image.height, image.width)
    if source == "points":
        points = grid
    else:
        points = scaled_camera(plan, image, whole).unproject(grid)
        _check_reach(points, grid, plan, _camera(plan, whole[1], whole[0]), whole)
    if not np.isfinite(points).all(axis=2).any():
        raise InvalidOption(
            source, "nothing was seen: no pixel has a positive, finite depth" if source == "depth" else "all points are NaN"
        )
    return points


def check_camera(plan: ReconstructPlan, width: int, height: int) -> None:
    """Raises InvalidOption for a focal length that makes the field of view narrower than NARROWEST."""
    for name, focal, side, pixels in (("fx", plan.fx, "wide", width), ("fy", plan.fy, "high", height)):
        most = math.floor(depth.focal_length(NARROWEST, pixels))
        if focal is not None and focal > most:
            raise InvalidOption(
                name,
                f"{focal:g} pixels are too many for a camera whose image is {pixels} pixels {side}: send a number above 0 and at most "
                f"{most}, a field of view of {NARROWEST:g} degrees",
            )


def camera_of(
    plan: ReconstructPlan, source: str, points: PointMap, mask: PixelMask, image: Image.Image, whole: tuple[int, int]
) -> PinholeCamera | None:
    """The camera of an image that was `whole` pixels wide and high when it was described; of points the one that fits those in the mask,
    None where there is none. Raises InvalidOption where that one is needed."""
    if source != "points":
        return scaled_camera(plan, image, whole)
    fitted = fit_camera(points, mask & np.isfinite(points).all(axis=2))
    if fitted is None and plan.surface == "joined":
        raise InvalidOption("surface", "no camera sees the points in their pixels, so that they cannot be joined: ask for `network`")
    return None if fitted is None else PinholeCamera(*(float(value) for value in fitted))


def _check_reach(
    points: PointMap, depth_map: NDArray[np.float32], plan: ReconstructPlan, camera: PinholeCamera, whole: tuple[int, int]
) -> None:
    """Raises InvalidOption where the camera, not the depth, puts points beyond all measure."""
    near = np.abs(points[np.isfinite(depth_map)][:, :2]) <= depth.MAX_DEPTH_M
    if not near.all():
        raise InvalidOption(
            _at_fault(plan, camera, whole, downwards=bool(near[:, 0].all())),
            f"with this camera a point lies more than {depth.MAX_DEPTH_M:g} m to the side; fx, fy, cx and cy are in pixels of the image",
        )


def _at_fault(plan: ReconstructPlan, camera: PinholeCamera, whole: tuple[int, int], *, downwards: bool) -> str:
    """The principal point, where it is further from the image's middle than the image is wide or high, else the focal length."""
    name, centre, side = ("cy", camera.cy, whole[1]) if downwards else ("cx", camera.cx, whole[0])
    if abs(centre - side / 2) > side:
        return name
    if plan.fov is not None:
        return "fov"
    return "fy" if downwards and plan.fy is not None else "fx"


def scaled_camera(plan: ReconstructPlan, image: Image.Image, whole: tuple[int, int]) -> PinholeCamera:
    """The camera of an image that was `whole` pixels wide and high when it was described."""
    return _camera(plan, whole[1], whole[0]).rescale(image.width / whole[0], image.height / whole[1])


def _camera(plan: ReconstructPlan, height: int, width: int) -> PinholeCamera:
    if plan.fx is not None:
        fx, fy = plan.fx, plan.fx if plan.fy is None else plan.fy
    else:
        fx = fy = depth.focal_length(USUAL_FOV if plan.fov is None else plan.fov, width)
    return PinholeCamera(fx, fy, width / 2 if plan.cx is None else plan.cx, height / 2 if plan.cy is None else plan.cy)


def mask_of(sent: PixelMask | None, pixels: NDArray[np.uint8], points: PointMap, source: str, whole: tuple[int, int]) -> PixelMask:
    """The mask of what counts, (H, W): the part, or the image's opaque pixels, or all that was seen. `whole`: width and height of the
    image as it was sent, and of the part. Raises InvalidOption."""
    seen = np.asarray(np.isfinite(points).all(axis=2))
    mask = _object(sent, pixels, whole)
    if mask is None:
        return seen
    if not (mask & seen).any():
        raise InvalidOption("image" if sent is None else "mask", f"covers no pixel that was seen in {source}")
    return mask


def view_of(
    see: Callable[[PixelMask], mcc_inputs.NetworkView], points: PointMap, mask: PixelMask, source: str, drawn: str | None
) -> mcc_inputs.NetworkView:
    """The view of what the mask shows. drawn: the part that shows the object, which is at fault where the points without it would do.
    Raises MediaError and InvalidOption."""
    try:
        with naming_part(source):
            return see(mask)
    except mcc_inputs.ImageTooNarrow as error:
        raise InvalidOption("image", str(error)) from error
    except InvalidPart as error:
        if drawn is None:
            raise
        reason = f"shows too little: {error}"
    if source != PHOTOGRAPH:  # whose points are those of the mask
        view_of(see, points, np.asarray(np.isfinite(points).all(axis=2)), source, None)
    raise InvalidOption(drawn, reason)


def photographed(sent: PixelMask | None, pixels: NDArray[np.uint8], whole: tuple[int, int]) -> PixelMask:
    """The mask of the object of a photograph without depth, (H, W). Raises InvalidOption."""
    mask = _object(sent, pixels, whole)
    if mask is None:
        raise InvalidOption(
            "mask", "missing: of an image without depth, send a mask that is white on the object, or make the rest transparent"
        )
    return mask


def _object(sent: PixelMask | None, pixels: NDArray[np.uint8], whole: tuple[int, int]) -> PixelMask | None:
    """The object that the part, else the image's opacity, shows, (H, W); None where neither does. Raises InvalidOption."""
    mask, name = (masks.opaque(pixels), "image") if sent is None else (sent, "mask")
    if mask is None:
        return None
    if sent is not None and sent.shape != (whole[1], whole[0]):
        raise InvalidOption("mask", f"{sent.shape[1]} × {sent.shape[0]} pixels, but the image, upright, has {whole[0]} × {whole[1]}")
    if not mask.any():
        raise InvalidOption(name, "covers nothing: white, or opaque, is the object")
    return mask if mask.shape == pixels.shape[:2] else depth.nearest(mask, *pixels.shape[:2])


def sent_mask(item: Item, decoder: ImageDecoder) -> PixelMask | None:
    """None where none was sent. Raises ImageError that names the part."""
    if "mask" not in item:
        return None
    with naming_part("mask"):
        opened = decoder.open(item["mask"])
        with decoder.budget.reserve(opened.memory(transparency=True) + MASKS * opened.pixels):
            return masks.object_mask(opened.load_upright(transparency=True))
