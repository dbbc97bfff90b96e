"""Fill a hole with patches of the image around it, from coarse to fine: PatchMatch (Barnes et al., SIGGRAPH 2009) with the votes of
overlapping patches (Wexler, Shechtman and Irani, 2007), by the package patchmatch-cython, one level of the pyramid at a time.

It runs in a confined process for each level (`models.media.patchmatch_program`), so that a fault in compiled code costs one job. Imports no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.processes.confined_process import ConfinedProcess

PACKAGE = "patchmatch_cython"
PROGRAM = "models.media.patchmatch_program"
PATCH = 5
"""Side of a patch in pixels."""
MOST_PIXELS = 2**20
"""Pixels of an image that is filled so, at most."""
MOST_HOLE = 3 * 2**15
"""Pixels of its hole: one search of them, and painting them, take less than two seconds."""
LEAST_SIDE = 32
"""Pixels along the longer side of the coarsest level: coarser ones lose what stands around the hole, finer ones find patches as smooth as
what the hole is filled with at first."""
NETWORK_SHARE = 3
"""The coarsest level is at least one part in so many of what a network has filled: reduced, its blur does not count."""
PATIENCE_S = 60.0
"""A level takes one or two seconds on an idle core."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PyramidLevel:
    """A level of the pyramid, filled."""

    pixels: Pixels
    """(h, w, 3)."""
    field: NDArray[np.int32]
    """(h, w, 2), column and row of the source patch of each patch that has a missing pixel."""

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.field.nbytes


def installed() -> bool:
    """There are machines for which the package has no wheel."""
    return find_spec(PACKAGE) is not None


def sources(missing: NDArray[np.bool_]) -> bool:
    """(h, w) → whether any patch is known as a whole."""
    if min(missing.shape) < PATCH:
        return False
    counts = np.zeros((missing.shape[0] + 1, missing.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(missing, axis=0, dtype=np.int32), axis=1, out=counts[1:, 1:])
    return bool((counts[PATCH:, PATCH:] - counts[:-PATCH, PATCH:] - counts[PATCH:, :-PATCH] + counts[:-PATCH, :-PATCH] == 0).any())


def reductions(missing: NDArray[np.bool_], least_side: int = LEAST_SIDE) -> tuple[int, ...]:
    """Powers of two by which the image is reduced, from the coarsest level to 1: a patch is known there as a whole, some of the hole is in
    whole cells, and its longer side has at least least_side pixels, where the image itself is not smaller."""
    chosen = [1]
    while True:
        reduction = 2 * chosen[-1]
        coarse = reduced_mask(missing, reduction)
        if max(coarse.shape) < least_side or not coarse.any() or not sources(coarse):
            return tuple(reversed(chosen))
        chosen.append(reduction)


def reduced_mask(missing: NDArray[np.bool_], reduction: int) -> NDArray[np.bool_]:
    """A cell is missing if any of its pixels is. Rows and columns beyond the last whole cell are left out."""
    height, width = (side // reduction for side in missing.shape)
    cells = missing[: height * reduction, : width * reduction].reshape(height, reduction, width, reduction)
    reduced: NDArray[np.bool_] = np.any(cells, axis=(1, 3))
    return reduced


def fill_level(pixels: Pixels, missing: NDArray[np.bool_], reduction: int, seed: int, before: PyramidLevel | Pixels | None) -> PyramidLevel:
    """The next level. pixels (h, w, 3) and missing (h, w) in full size; before: the level before, or another filling in any size, to start
    from; None: from the colours around the hole. Raises `models.processes.confined_process.ProcessDied`."""
    request, data = encode_request(pixels, missing, reduction, seed, before)
    with ConfinedProcess(PROGRAM, data, request, patience=PATIENCE_S, often=True) as program:
        height, width = program.message()["size"]
        level = PyramidLevel(np.empty((height, width, 3), np.uint8), np.empty((height, width, 2), np.int32))
        program.read_into(level.pixels.data.cast("B"))
        program.read_into(level.field.data.cast("B"))
    return level


def encode_request(
    pixels: Pixels, missing: NDArray[np.bool_], reduction: int, seed: int, before: PyramidLevel | Pixels | None
) -> tuple[dict[str, Any], bytes]:
    """The program's request and its file."""
    start = before.pixels if isinstance(before, PyramidLevel) else before
    parts = [pixels.tobytes(), missing.astype(np.uint8).tobytes()]
    if start is not None:
        parts.append(start.tobytes())
    if isinstance(before, PyramidLevel):
        parts.append(before.field.tobytes())
    request = {
        "size": missing.shape,
        "reduction": reduction,
        "seed": seed % 2**32,
        "started": () if start is None else start.shape[:2],
        "has_field": isinstance(before, PyramidLevel),
    }
    return request, b"".join(parts)
