"""Captures of drawn objects: an image that is transparent around the object, and its depth in millimetres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starters.make.drawings.solids import DrawingCamera, Solid, capsule, cylinder, ellipsoid, render, ring, without

FOV = 40.0
"""Horizontal field of view in degrees; the playground's page has the same."""
SIDE = 320
CAMERA = DrawingCamera(eye=(0.35, 0.42, 1.0), target=(0.0, 0.0, 0.0), fov=FOV, width=SIDE, height=SIDE)

MUG = (
    Solid((196, 64, 52), without(cylinder((0, 0, 0), 0.16, 0.19), cylinder((0, 0.03, 0), 0.14, 0.19)), stripes=((240, 226, 200), 0.08)),
    Solid((240, 226, 200), without(ring((0.17, 0, 0), 0.1, 0.028), cylinder((0, 0, 0), 0.15, 0.3))),
)
DUCK = (
    Solid((246, 200, 46), ellipsoid((0, -0.06, 0), (0.22, 0.15, 0.16))),
    Solid((246, 200, 46), capsule((-0.16, 0, 0), (-0.27, 0.07, 0), 0.08, 0.03)),
    Solid((246, 200, 46), ellipsoid((0.13, 0.15, 0), (0.11, 0.11, 0.1))),
    Solid((232, 176, 30), ellipsoid((-0.04, -0.02, 0.14), (0.13, 0.07, 0.04))),
    Solid((232, 176, 30), ellipsoid((-0.04, -0.02, -0.14), (0.13, 0.07, 0.04))),
    Solid((236, 120, 40), ellipsoid((0.25, 0.13, 0), (0.07, 0.025, 0.06))),
    Solid((40, 32, 32), ellipsoid((0.2, 0.19, 0.06), (0.022, 0.025, 0.022))),
    Solid((40, 32, 32), ellipsoid((0.2, 0.19, -0.06), (0.022, 0.025, 0.022))),
)
OBJECTS: Mapping[str, tuple[Solid, ...]] = {"mug": MUG, "duck": DUCK}


@dataclass(frozen=True)
class DrawnCapture:
    image: NDArray[np.uint8]
    """(H, W, 4)."""
    depth: NDArray[np.uint16]
    """(H, W), millimetres; 0 in the background."""


def capture(name: str) -> DrawnCapture:
    view = render(OBJECTS[name], CAMERA)
    alpha = np.where(view.depth > 0, 255, 0).astype(np.uint8)
    return DrawnCapture(np.dstack([view.colours, alpha]), np.rint(view.depth * 1000).astype(np.uint16))
