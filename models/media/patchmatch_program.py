"""The process that fills one level of a pyramid: `python -m models.media.patchmatch_program`. See `models.media.patchmatch`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.media import confined
from models.media.patchmatch import PATCH, reduced_mask

sys.modules.setdefault("cv2", None)  # type: ignore[arg-type]  # it takes a while to import, and must not change what is made
from patchmatch_cython import imageops  # noqa: E402
from patchmatch_cython.cython_solver import CythonSolver  # noqa: E402

imageops.set_use_opencv(False)

MOST_VISITS = 160_000
"""Patches of the hole times iterations of a level: a second and a half of an idle core. Fine levels start from what coarse ones found."""
HALF = PATCH // 2


def main() -> None:
    asked = confined.request()
    confined.confine()
    filled, field = level(asked, sys.stdin.buffer.read())
    confined.say({"size": filled.shape[:2]})
    confined.send(filled.data.cast("B"))
    confined.send(field.data.cast("B"))


def level(asked: dict[str, Any], data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """What `models.media.patchmatch.fill` asks for: pixels (h, w, 3) and the field (h, w, 2)."""
    pixels, missing, start, field = _read(asked, data)
    coarse = reduced_mask(missing, asked["reduction"])
    height, width = coarse.shape
    image = _reduced(pixels, asked["reduction"])
    image[coarse] = 0 if start is None else imageops.resize_image(start.astype(np.float32), height, width)[coarse]
    if field is not None:
        query, valid = imageops.build_query_patch_centers(coarse, HALF), imageops.build_valid_patch_centers(coarse, HALF)
        enlarged = imageops.upsample(field.astype(np.int32), height, width)
        field = imageops.sanitize_nnf(enlarged, query, valid, rng=np.random.default_rng(asked["seed"]))
    iterations = min(2 * (asked["number"] + 2) + 1, max(1, MOST_VISITS // int(coarse.sum())))
    solver = CythonSolver(image, coarse, PATCH)
    filled = solver(iterations=iterations, randomize_nnf=field is None, nnf=field, seed=asked["seed"])
    return np.ascontiguousarray(np.clip(np.rint(filled), 0, 255).astype(np.uint8)), np.ascontiguousarray(solver.nnf.astype(np.int16))


def _read(asked: dict[str, Any], sent: bytes) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8] | None, NDArray[Any] | None]:
    """Pixels, missing, what the hole is filled with so far, and from where."""
    data = np.frombuffer(sent, np.uint8)
    (height, width), started = asked["size"], asked["started"]
    count = height * width
    pixels, missing, rest = (
        data[: 3 * count].reshape(height, width, 3),
        data[3 * count : 4 * count].reshape(height, width),
        data[4 * count :],
    )
    if not started:
        return pixels, missing > 0, None, None
    down, across = started
    start, rest = rest[: 3 * down * across].reshape(down, across, 3), rest[3 * down * across :]
    return pixels, missing > 0, start, rest.view(np.int16).reshape(down, across, 2) if asked["has_field"] else None


def _reduced(pixels: NDArray[np.uint8], reduction: int) -> NDArray[np.float32]:
    """Means of square cells, float32."""
    height, width = (side // reduction for side in pixels.shape[:2])
    cells = pixels[: height * reduction, : width * reduction].reshape(height, reduction, width, reduction, 3)
    means: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return means


if __name__ == "__main__":
    main()
