"""Real photographs with depth from packages, as the service takes them: `python -m training.data.captures FOLDER`.

For each: NAME.png (RGB), NAME-depth.png (16 bits, millimetres, 0 for missing depth), NAME-mask.png (white on the object) and
NAME.json (fx, fy, cx, cy in pixels). The photographs are of the Middlebury stereo data sets (D. Scharstein et al., 2006 and 2014). The
masks are ours: regions drawn by hand, in which what is near enough is the object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.data.packages import DebianPackage, obtain
from training.errors import exit_code

Polygon = Sequence[tuple[int, int]]
"""Corners, x and y in pixels."""

OPENCV = DebianPackage(
    name="opencv-doc", version="4.10.0+dfsg-5", sha256="91cd76e170536065f547010e6794a9b567dc1a08ea7e1459b70f500235d98da8"
)


@dataclass(frozen=True)
class DepthCapture:
    rgb: npt.NDArray[np.uint8]
    """(H, W, 3)."""
    depth: npt.NDArray[np.float32]
    """(H, W), metres along the optical axis, 0 for missing values."""
    mask: npt.NDArray[np.bool_]
    """(H, W)."""
    focal: float
    centre: tuple[float, float]
    """All in pixels."""

    def write(self, folder: Path, name: str) -> None:
        Image.fromarray(self.rgb).save(folder / f"{name}.png")
        Image.fromarray(np.round(1000 * self.depth).astype(np.uint16)).save(folder / f"{name}-depth.png")
        Image.fromarray(np.where(self.mask, 255, 0).astype(np.uint8)).save(folder / f"{name}-mask.png")
        intrinsics = {"fx": self.focal, "fy": self.focal, "cx": self.centre[0], "cy": self.centre[1]}
        (folder / f"{name}.json").write_text(json.dumps(intrinsics) + "\n", encoding="utf-8")


# fmt: off
_MOTORCYCLE: tuple[Polygon, ...] = ((
    (88, 190), (132, 192), (138, 150), (160, 140), (200, 158), (262, 190), (345, 183), (398, 165), (352, 168), (326, 135), (330, 112),
    (385, 100), (440, 108), (470, 115), (492, 70), (540, 80), (588, 112), (592, 142), (560, 190), (548, 215), (592, 258), (650, 295),
    (686, 380), (684, 420), (655, 452), (618, 448), (570, 425), (512, 345), (500, 322), (482, 335), (442, 376), (372, 384), (346, 400),
    (340, 412), (324, 412), (324, 372), (270, 372), (250, 395), (200, 403), (150, 395), (120, 340), (116, 290), (138, 246), (88, 252),
),)
_ALOE: tuple[Polygon, ...] = (
    ((0, 0), (1281, 0), (1281, 790), (1030, 812), (700, 812), (560, 850), (545, 960), (0, 960)),  # leaves
    ((710, 800), (1068, 800), (1062, 880), (1052, 900), (1006, 1060), (980, 1076), (775, 1072), (748, 1050), (705, 880)),  # pot
    ((540, 850), (800, 750), (830, 800), (640, 945), (500, 1030), (340, 1100), (298, 1104), (350, 1040)),  # the leaf in front
)
# fmt: on


def motorcycle(cache: Path) -> DepthCapture:
    """Return the photograph of scikit-image, with the calibration of its documentation."""
    import skimage

    examples: Any = skimage.data
    left, _, disparity = examples.stereo_motorcycle()
    is_known = np.isfinite(disparity)
    focal, baseline, offset = 994.978, 0.193001, 31.086
    depth = np.where(is_known, focal * baseline / (np.where(is_known, disparity, 0) + offset), 0).astype(np.float32)
    return DepthCapture(left, depth, _within(_MOTORCYCLE, left.shape) & is_known & (disparity > 41), focal, (311.193, 254.877))


def aloe(cache: Path) -> DepthCapture:
    """Return the photograph of OpenCV's examples, which have no calibration.

    The data set gives f = 3740 pixels and a baseline of 160 mm; a crop offset of 270 pixels makes the pot round, with a radius of 61 mm.
    """
    folder = obtain(OPENCV, cache) / "usr/share/doc/opencv-doc/examples/data"
    rgb = np.asarray(Image.open(folder / "aloeL.jpg").convert("RGB"))
    disparity = np.asarray(Image.open(folder / "aloeGT.png"), np.float32)
    focal, baseline, offset = 3740.0, 0.160, 270.0
    depth = np.where(disparity > 0, focal * baseline / (disparity + offset), 0).astype(np.float32)
    height, width = disparity.shape
    return DepthCapture(rgb, depth, _within(_ALOE, rgb.shape) & (disparity > 72), focal, (width / 2, height / 2))


CAPTURES: Mapping[str, Callable[[Path], DepthCapture]] = {"motorcycle": motorcycle, "aloe": aloe}


def _within(polygons: Sequence[Polygon], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return a mask (H, W) of the inside of all polygons."""
    image = Image.new("1", (shape[1], shape[0]))
    pen = ImageDraw.Draw(image)
    for polygon in polygons:
        pen.polygon(list(polygon), fill=1)
    return np.asarray(image)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.data.captures", description="Write photographs with depth and masks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="downloaded packages (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: _write_all(parsed.folder, parsed.cache), parsed.folder)


def _write_all(folder: Path, cache: Path) -> None:
    for name, capture in CAPTURES.items():
        capture(cache).write(folder, name)
        print(f"wrote {folder / name}.png, -depth.png, -mask.png and .json")


if __name__ == "__main__":
    sys.exit(main())
