"""Program that fills one level of a pyramid: `python -m models.media.patchmatch_program`. See `models.media.patchmatch`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.media import patchmatch, poisson_blending
from models.media.patchmatch import PATCH, reduced_mask
from models.processes import confined_process

sys.modules.setdefault("cv2", None)  # type: ignore[arg-type]  # it is slow to import, and must not change the result
from patchmatch_cython import imageops  # noqa: E402
from patchmatch_cython.cython_solver import CythonSolver  # noqa: E402

imageops.set_use_opencv(False)

MAX_PATCH_ITERATIONS = 160_000
"""Maximum number of patches of the hole times iterations of a level: 1.5 seconds of an idle core."""
ITERATIONS, FINEST_ITERATIONS = 3, 1
"""Iterations of the search. The finest level copies the regions of the level before: further search would prefer patches as smooth as the
mean of overlapping ones."""
HALF = PATCH // 2


def main() -> None:
    request = confined_process.receive_request()
    confined_process.confine()
    filled, field = compute_level(request, sys.stdin.buffer.read())
    confined_process.write_message({"size": filled.shape[:2]})
    confined_process.write_payload(filled.data.cast("B"))
    confined_process.write_payload(field.data.cast("B"))


def compute_level(request: dict[str, Any], data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Compute a level of `models.media.patchmatch.fill_level`: pixels (h, w, 3) and the field (h, w, 2)."""
    pixels, missing, start, before = _decode_request(request, data)
    coarse = reduced_mask(missing, request["reduction"])
    image = _reduce(pixels, request["reduction"])
    image[coarse] = 0 if start is None else imageops.resize_image(start.astype(np.float32), *coarse.shape)[coarse]
    query, valid = imageops.build_query_patch_centers(coarse, HALF), imageops.build_valid_patch_centers(coarse, HALF)
    if before is None:
        image = poisson_blending.blend_hole(image, coarse)
        field = patchmatch.nearest_patches(image, query, valid)
    else:
        field = patchmatch.upsample_field(before, *coarse.shape)
        field = imageops.sanitize_nnf(field, query, valid, rng=np.random.default_rng(request["seed"]))
    solver = CythonSolver(image, coarse, PATCH)
    mean = solver(
        iterations=_iterations(request["reduction"], coarse, before is None), randomize_nnf=False, nnf=field, seed=request["seed"]
    )
    filled = patchmatch.vote_colours(image, coarse, solver.nnf, mean)
    return np.ascontiguousarray(np.clip(np.rint(filled), 0, 255).astype(np.uint8)), np.ascontiguousarray(solver.nnf.astype(np.int32))


def _iterations(reduction: int, missing: NDArray[np.bool_], is_first: bool) -> int:
    default = FINEST_ITERATIONS if reduction == 1 and not is_first else ITERATIONS
    return min(default, max(1, MAX_PATCH_ITERATIONS // int(missing.sum())))


def _decode_request(
    request: dict[str, Any], content: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8] | None, NDArray[Any] | None]:
    """Return pixels, mask, the present filling of the hole, and its field."""
    data = np.frombuffer(content, np.uint8)
    (height, width), started = request["size"], request["started"]
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
    return pixels, missing > 0, start, rest.view(np.int32).reshape(down, across, 2) if request["has_field"] else None


def _reduce(pixels: NDArray[np.uint8], reduction: int) -> NDArray[np.float32]:
    """Average square cells, float32."""
    height, width = (side // reduction for side in pixels.shape[:2])
    cells = pixels[: height * reduction, : width * reduction].reshape(height, reduction, width, reduction, 3)
    means: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return means


if __name__ == "__main__":
    main()
