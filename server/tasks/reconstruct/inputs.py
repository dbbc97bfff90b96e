"""The parts of a reconstruction's request → points and the mask of the object, or an error that names the part.

Of a photograph without depth, a network predicts it up to scale and shift. So the depth of the object, in the middle and from front to
back, is an assumption: its median is 1, and its extent is half the object's size, like the front of a ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec
from models.systems.mcc.surfaces import fit_camera
from server.media import depth, masks, mcc_inputs, npy
from server.media.depth import PinholeCamera, PointMap
from server.media.images import ImageDecoder
from server.media.limits import InvalidPart, naming_part
from server.media.masks import PixelMask
from server.tasks.base import Item
from server.tasks.options import InvalidOption
from server.tasks.reconstruct.schema import DEPTH_OPTIONS, ReconstructPlan

PHOTOGRAPH = "image"
"""The source of points, if neither depth nor points were sent."""
PREDICTED_DEPTH = "told"
"""Name, among the parts of an item, of the depth that a network predicted, a `.npy` file."""
DEFAULT_FOV_DEGREES = 60.0
"""Default horizontal field of view of a photograph, in degrees."""
MIN_FOV_DEGREES = 0.01
"""Minimum field of view in degrees."""
MASK_BYTES_PER_PIXEL = 2
"""Memory for a pixel of a mask in addition to its image: bright and opaque pixels."""
MAX_WORKING_PIXELS = 2**21
"""Maximum size of the image that is processed: it takes about 80 bytes a pixel, and a network sees far fewer."""


def is_photograph(item: Item) -> bool:
    return "depth" not in item and "points" not in item


def source_of(item: Item, plan: ReconstructPlan, spec: BundleSpec) -> str:
    """Return the part that points come from. Raises InvalidOption."""
    if "depth" in item and "points" in item:
        raise InvalidOption("points", "cannot be combined with depth: send one of them")
    if "points" in item:
        for name in DEPTH_OPTIONS:
            if getattr(plan, name) is not None:
                raise InvalidOption(name, "is for `depth`; points need no camera")
        return "points"
    if is_photograph(item):
        if not estimates_depth(spec):
            raise InvalidOption("depth", f"missing: send depth with fx or fov, or points; {spec.id} names no member that estimates depth")
        if plan.depth_scale is not None:
            raise InvalidOption("depth_scale", "is for `depth`, which was not sent")
        return PHOTOGRAPH
    if plan.fx is None and plan.fov is None:
        raise InvalidOption("fx", "missing: depth needs fx (fy, cx, cy) in pixels, or fov in degrees")
    return "depth"


def read_map(item: Item, plan: ReconstructPlan, source: str, decoder: ImageDecoder) -> NDArray[np.float32]:
    """Read depth (h, w) or points (h, w, 3), or the predicted depth of a photograph (S, S). Raises MediaError and InvalidOption."""
    if source == PHOTOGRAPH:
        return npy.read(item[PREDICTED_DEPTH], npy.read_header(item[PREDICTED_DEPTH]))
    with naming_part(source):
        if source == "points":
            return depth.read_points(item["points"], decoder)
        if plan.depth_scale is not None and item["depth"].startswith(npy.MAGIC):
            raise InvalidOption("depth_scale", "is for 16-bit PNG; a .npy file holds metres")
        return depth.read_depth(item["depth"], decoder, plan.depth_scale)


def reduce_image(image: Image.Image) -> Image.Image:
    """Return the image, reduced to MAX_WORKING_PIXELS."""
    share = math.sqrt(MAX_WORKING_PIXELS / (image.width * image.height))
    if share >= 1:
        return image
    width, height = max(1, math.floor(image.width * share)), max(1, math.floor(image.height * share))
    width = min(width, MAX_WORKING_PIXELS // height)
    return image.resize((width, min(height, MAX_WORKING_PIXELS // width)), Image.Resampling.BOX)


def points_of(
    grid: NDArray[np.float32], plan: ReconstructPlan, source: str, image: Image.Image, original_size: tuple[int, int]
) -> PointMap:
    """Return points (H, W, 3) of an image. original_size: width and height that the camera refers to. Raises MediaError, InvalidOption."""
    with naming_part(source):
        grid = depth.to_image_size(grid, image.height, image.width)
    if source == "points":
        points = grid
    else:
        points = scaled_camera(plan, image, original_size).unproject(grid)
        _check_reach(points, grid, plan, _camera(plan, original_size[1], original_size[0]), original_size)
    if not np.isfinite(points).all(axis=2).any():
        raise InvalidOption(
            source, "nothing was seen: no pixel has a positive, finite depth" if source == "depth" else "all points are NaN"
        )
    return points


def check_camera(plan: ReconstructPlan, width: int, height: int) -> None:
    """Raise InvalidOption for a focal length that makes the field of view narrower than MIN_FOV_DEGREES."""
    for name, focal, side, pixels in (("fx", plan.fx, "wide", width), ("fy", plan.fy, "high", height)):
        max_focal = math.floor(depth.focal_length(MIN_FOV_DEGREES, pixels))
        if focal is not None and focal > max_focal:
            raise InvalidOption(
                name,
                f"{focal:g} pixels are too many for a camera whose image is {pixels} pixels {side}: send a number above 0 and at most "
                f"{max_focal}, a field of view of {MIN_FOV_DEGREES:g} degrees",
            )


def camera_of(
    plan: ReconstructPlan, source: str, points: PointMap, mask: PixelMask, image: Image.Image, original_size: tuple[int, int]
) -> PinholeCamera | None:
    """Return the camera of an image, or one that fits points in the mask; None if there is none. Raises InvalidOption if it is needed.

    original_size: width and height that the camera refers to."""
    if source != "points":
        return scaled_camera(plan, image, original_size)
    fitted = fit_camera(points, mask & np.isfinite(points).all(axis=2))
    if fitted is None and plan.surface == "joined":
        raise InvalidOption("surface", "no camera sees the points in their pixels, so they cannot be joined: use `network`")
    return None if fitted is None else PinholeCamera(*(float(value) for value in fitted))


def _check_reach(
    points: PointMap, depth_map: NDArray[np.float32], plan: ReconstructPlan, camera: PinholeCamera, original_size: tuple[int, int]
) -> None:
    """Raise InvalidOption if the camera, not the depth, puts points beyond all measure."""
    near = np.abs(points[np.isfinite(depth_map)][:, :2]) <= depth.MAX_DEPTH_M
    if not near.all():
        raise InvalidOption(
            _faulty_option(plan, camera, original_size, downwards=bool(near[:, 0].all())),
            f"with this camera a point lies more than {depth.MAX_DEPTH_M:g} m to the side; fx, fy, cx and cy are in pixels of the image",
        )


def _faulty_option(plan: ReconstructPlan, camera: PinholeCamera, original_size: tuple[int, int], *, downwards: bool) -> str:
    """Return the principal point, if it is further from the image's middle than the image is wide or high, else the focal length."""
    name, centre, side = ("cy", camera.cy, original_size[1]) if downwards else ("cx", camera.cx, original_size[0])
    if abs(centre - side / 2) > side:
        return name
    if plan.fov is not None:
        return "fov"
    return "fy" if downwards and plan.fy is not None else "fx"


def scaled_camera(plan: ReconstructPlan, image: Image.Image, original_size: tuple[int, int]) -> PinholeCamera:
    """Return the camera of an image. original_size: width and height that the camera refers to."""
    return _camera(plan, original_size[1], original_size[0]).rescale(image.width / original_size[0], image.height / original_size[1])


def _camera(plan: ReconstructPlan, height: int, width: int) -> PinholeCamera:
    if plan.fx is not None:
        fx, fy = plan.fx, plan.fx if plan.fy is None else plan.fy
    else:
        fx = fy = depth.focal_length(DEFAULT_FOV_DEGREES if plan.fov is None else plan.fov, width)
    return PinholeCamera(fx, fy, width / 2 if plan.cx is None else plan.cx, height / 2 if plan.cy is None else plan.cy)


def mask_of(sent: PixelMask | None, pixels: NDArray[np.uint8], points: PointMap, source: str, original_size: tuple[int, int]) -> PixelMask:
    """Return the mask of the object, (H, W): the part, or the image's opaque pixels, or all that was seen. Raises InvalidOption.

    original_size: width and height of the image as it was sent, and of the part."""
    seen = np.asarray(np.isfinite(points).all(axis=2))
    mask = _object(sent, pixels, original_size)
    if mask is None:
        return seen
    if not (mask & seen).any():
        raise InvalidOption("image" if sent is None else "mask", f"covers no pixel that was seen in {source}")
    return mask


def view_of(
    see: Callable[[PixelMask], mcc_inputs.NetworkView], points: PointMap, mask: PixelMask, source: str, drawn: str | None
) -> mcc_inputs.NetworkView:
    """Return the view of the masked object. drawn: the part with the mask, at fault if all seen points would do. Raises MediaError and
    InvalidOption."""
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


def photographed_object_mask(sent: PixelMask | None, pixels: NDArray[np.uint8], original_size: tuple[int, int]) -> PixelMask:
    """Return the mask of the object of a photograph without depth, (H, W). Raises InvalidOption."""
    mask = _object(sent, pixels, original_size)
    if mask is None:
        raise InvalidOption(
            "mask", "missing: of an image without depth, send a mask that is white on the object, or make the rest transparent"
        )
    return mask


def _object(sent: PixelMask | None, pixels: NDArray[np.uint8], original_size: tuple[int, int]) -> PixelMask | None:
    """Return the object in the part, else in the image's opacity, (H, W). None if neither shows one. Raises InvalidOption."""
    mask, name = (masks.opaque(pixels), "image") if sent is None else (sent, "mask")
    if mask is None:
        return None
    if sent is not None and sent.shape != (original_size[1], original_size[0]):
        raise InvalidOption(
            "mask", f"{sent.shape[1]} × {sent.shape[0]} pixels, but the image, upright, has {original_size[0]} × {original_size[1]}"
        )
    if not mask.any():
        raise InvalidOption(name, "covers nothing: white, or opaque, is the object")
    return mask if mask.shape == pixels.shape[:2] else depth.nearest(mask, *pixels.shape[:2])


def read_mask_part(item: Item, decoder: ImageDecoder) -> PixelMask | None:
    """Read the mask. Return None without one. Raises ImageError that names the part."""
    if "mask" not in item:
        return None
    with naming_part("mask"):
        opened = decoder.open(item["mask"])
        with decoder.budget.reserve(opened.memory(transparency=True) + MASK_BYTES_PER_PIXEL * opened.pixels):
            return masks.object_mask(opened.load_upright(transparency=True))


CONTEXT = 0.1
"""Margin around the object on each side, relative to its longer side."""
REACH = 0.5
"""Depth from front to back of the seen side, in square roots of the area that the silhouette has at the median depth."""
MAX_REACH = 0.9
TAILS = (1.0, 99.0)
"""Percentiles to which predictions are clipped."""
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def estimates_depth(spec: BundleSpec) -> bool:
    """Return whether a bundle can be sent an image alone."""
    return "depth" in spec.members


def photograph(image: Image.Image, mask: PixelMask, spec: BundleSpec) -> NDArray[np.uint8]:
    """Return the square around the masked object, uint8 (S, S, 3): black beyond the image or, if the bundle wants it, the object's mean
    colour everywhere outside the object."""
    side, (box, place) = int(spec.config["depth_size"]), _object_square(mask)
    left, top, right, bottom = (round(edge * side) for edge in place)
    size, corner = (max(1, right - left), max(1, bottom - top)), (min(left, side - 1), min(top, side - 1))
    way = FILTERS[spec.config["depth_interpolation"]]
    square = Image.new("RGB", (side, side))
    square.paste(image.convert("RGB").resize(size, way, box=box), corner)
    if spec.config.get("depth_background") != "mean":
        return np.asarray(square)
    inside = Image.new("L", (side, side))
    inside.paste(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, way, box=box), corner)
    colours, share = np.asarray(square, np.float32), np.asarray(inside, np.float32)[..., None] / 255
    mean = (colours * share).sum(axis=(0, 1)) / max(float(share.sum()), 1e-6)
    filled: NDArray[np.uint8] = np.rint(mean + share * (colours - mean)).astype(np.uint8)
    return filled


def to_depth(prediction: NDArray[np.float32], mask: PixelMask, spec: BundleSpec, focal: float) -> NDArray[np.float32]:
    """Convert a prediction for `photograph`, (S, S), to depth (H, W) of the masked object, in units of its median; NaN elsewhere.

    focal: of the camera, in pixels of the mask.
    """
    (left, top, right, bottom), place = _object_square(mask)
    x0, y0, x1, y1 = (edge * len(prediction) for edge in place)
    part = Image.fromarray(prediction).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    spread = np.zeros(mask.shape, np.float64)
    spread[top:bottom, left:right] = np.asarray(part)
    values = np.clip(spread, *np.percentile(spread[mask], TAILS))
    reach = min(MAX_REACH, REACH * np.sqrt(np.count_nonzero(mask)) / focal)
    depth = (
        _depth_from_disparity(values, mask, reach) if spec.config["depth_output"] == "disparity" else _depth_from_depth(values, mask, reach)
    )
    return np.where(mask, depth, np.nan).astype(np.float32)


def _depth_from_depth(prediction: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """Return 1 + a (t - median), with a so that the depth has this reach, and the nearest is at most half as near as the median."""
    middle, (nearest, farthest) = np.median(prediction[inside]), (prediction[inside].min(), prediction[inside].max())
    if nearest == farthest:
        return np.ones_like(prediction)
    a = min(reach / (farthest - nearest), 0.5 / max(middle - nearest, 1e-12))
    return np.asarray(1 + a * (prediction - middle))


def _depth_from_disparity(prediction: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """Return 1 / (1 + a (t - median)), with a so that the depth has this reach.

    far = 1 / (1 - a u), near = 1 / (1 + a v), and far - near = reach make reach u v a² + (u + v - reach (v - u)) a - reach = 0, of which
    one root lies between 0 and 1 / u."""
    middle = np.median(prediction[inside])
    u, v = middle - prediction[inside].min(), prediction[inside].max() - middle
    if u + v == 0:
        return np.ones_like(prediction)
    second, first = reach * u * v, u + v - reach * (v - u)
    a = 2 * reach / (first + np.sqrt(first**2 + 4 * second * reach))
    return np.asarray(1 / (1 + a * (prediction - middle)))


def _object_square(mask: PixelMask) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """Return the part of the image inside the square around the object, and its position in that square, whose side is 1.

    Both are left, top, right and bottom."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = int(max(np.ptp(rows), np.ptp(columns))) + 1
    half = (size + 1) // 2 + round(CONTEXT * size)
    top, left = (int(places[0] + places[-1] + 1) // 2 - half for places in (rows, columns))
    height, width = mask.shape
    box = max(0, left), max(0, top), min(width, left + 2 * half), min(height, top + 2 * half)
    x0, y0, x1, y1 = ((edge - start) / (2 * half) for edge, start in zip(box, (left, top) * 2, strict=True))
    return box, (x0, y0, x1, y1)
