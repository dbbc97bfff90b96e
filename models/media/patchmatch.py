"""Filling of holes with patches of the image around them, from coarse to fine, by the package patchmatch-cython.

This is PatchMatch (Barnes et al., SIGGRAPH 2009) with the votes of overlapping patches (Wexler, Shechtman and Irani, 2007). Each level of
the pyramid runs in a confined process (`models.media.patchmatch_program`), so that a fault in compiled code costs one job. Imports no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import BoolArray, UInt8Array
from models.processes.confined_process import ConfinedProcess

PACKAGE = "patchmatch_cython"
PROGRAM = "models.media.patchmatch_program"
PATCH = 5
"""Side of a patch in pixels."""
MAX_PIXELS = 2**20
"""Maximum number of pixels of an image."""
MAX_HOLE_PIXELS = 3 * 2**15
"""Maximum number of pixels of its hole: one search for them, and choosing their colours, take less than two seconds."""
MIN_SIDE_PIXELS = 32
"""Minimum length in pixels of the coarsest level's longer side: coarser levels lose the surroundings of the hole; finer ones find patches
as smooth as the hole's first filling."""
MAX_NETWORK_REDUCTION = 3
"""Maximum reduction of the coarsest level if a network has filled the hole: reduced, its blur does not matter."""
PATIENCE_S = 60.0
"""Seconds of silence after which a level has failed; it takes one or two seconds of an idle core."""


@dataclass(frozen=True)
class PyramidLevel:
    """A filled level of the pyramid."""

    pixels: UInt8Array
    """(h, w, 3)."""
    field: NDArray[np.int32]
    """(h, w, 2), column and row of the source patch of each patch that has a missing pixel."""

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.field.nbytes


def installed() -> bool:
    """Return True if the package is installed; it has no wheel for some machines."""
    return find_spec(PACKAGE) is not None


def has_sources(missing: BoolArray) -> bool:
    """Return True if any patch of the mask (h, w) is entirely known."""
    if min(missing.shape) < PATCH:
        return False
    counts = np.zeros((missing.shape[0] + 1, missing.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(missing, axis=0, dtype=np.int32), axis=1, out=counts[1:, 1:])
    return bool((counts[PATCH:, PATCH:] - counts[:-PATCH, PATCH:] - counts[PATCH:, :-PATCH] + counts[:-PATCH, :-PATCH] == 0).any())


def reductions(missing: BoolArray, least_side: int = MIN_SIDE_PIXELS) -> tuple[int, ...]:
    """Return the powers of two by which the image is reduced, from the coarsest level to 1. Each level has a patch that is entirely known
    and some of the hole, and its longer side has at least least_side pixels, unless the image itself is smaller."""
    factors = [1]
    while True:
        reduction = 2 * factors[-1]
        coarse = reduced_mask(missing, reduction)
        if max(coarse.shape) < least_side or not coarse.any() or not has_sources(coarse):
            return tuple(reversed(factors))
        factors.append(reduction)


def reduced_mask(missing: BoolArray, reduction: int) -> BoolArray:
    """Reduce a mask (h, w): a cell is missing if any of its pixels is. Rows and columns after the last whole cell are omitted."""
    height, width = (side // reduction for side in missing.shape)
    cells = missing[: height * reduction, : width * reduction].reshape(height, reduction, width, reduction)
    reduced: BoolArray = np.any(cells, axis=(1, 3))
    return reduced


def fill_level(pixels: UInt8Array, missing: BoolArray, reduction: int, seed: int, before: PyramidLevel | UInt8Array | None) -> PyramidLevel:
    """Fill the next level. pixels (h, w, 3) and missing (h, w) in full size. before: the level before, or a filling of any size, to start
    from; None: the colours around the hole. Raises `models.processes.confined_process.ProcessDied`."""
    request, data = encode_request(pixels, missing, reduction, seed, before)
    with ConfinedProcess(PROGRAM, data, request, patience=PATIENCE_S, often=True) as program:
        height, width = program.message()["size"]
        level = PyramidLevel(np.empty((height, width, 3), np.uint8), np.empty((height, width, 2), np.int32))
        program.read_into(level.pixels.data.cast("B"))
        program.read_into(level.field.data.cast("B"))
    return level


def encode_request(
    pixels: UInt8Array, missing: BoolArray, reduction: int, seed: int, before: PyramidLevel | UInt8Array | None
) -> tuple[dict[str, Any], bytes]:
    """Return the program's request and its file."""
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
