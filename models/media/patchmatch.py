"""Filling of holes with patches of the image around them, from coarse to fine, by the package patchmatch-cython.

This is PatchMatch (Barnes et al., SIGGRAPH 2009) with the votes of overlapping patches (Wexler, Shechtman and Irani, 2007). Each level of
the pyramid runs in a confined process (`models.media.patchmatch_program`), so that a fault in compiled code costs one job. Imports no
torch.

The first field, the field of the next finer level and the colours that a field copies are computed here, in NumPy. A field is int32
(h, w, 2): column and row of the source patch's centre for the patch around each pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.arrays import BoolArray, UInt8Array
from models.processes.confined_process import ConfinedProcess

PACKAGE = "patchmatch_cython"
PROGRAM = "models.media.patchmatch_program"
PATCH = 5
MAX_PIXELS = 2**20
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


HALF = PATCH // 2
MAX_PAIRS = 5 * 10**7
"""Maximum number of pairs that `nearest_patches` compares, half a second of an idle core: it skips sources evenly if there are more."""
MAX_SOURCES = 2**16
PAIRS_PER_CHUNK = 2**22
"""Number of pairs that are compared at once: 16 MiB of distances."""
PIXELS_PER_CHUNK = 2**11
"""Number of hole pixels whose colours are chosen at once: their votes stay in a core's cache."""
MID_GREY = 128.0

Field = NDArray[np.int32]


def nearest_patches(image: NDArray[np.float32], queries: BoolArray, sources: BoolArray) -> Field:
    """Find the source patch that is nearest to each query by squared differences. image (h, w, 3), filled; masks (h, w) of centres."""
    height, width = queries.shape
    field = np.stack(np.meshgrid(np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)), axis=-1)
    query_centres, source_centres = np.argwhere(queries), np.argwhere(sources)
    max_sources = max(1, min(MAX_SOURCES, MAX_PAIRS // len(query_centres)))
    source_centres = source_centres[:: -(-len(source_centres) // max_sources)]
    wide = np.pad(image - np.float32(MID_GREY), ((HALF, HALF), (HALF, HALF), (0, 0)), mode="edge")
    patches = sliding_window_view(wide, (PATCH, PATCH), axis=(0, 1))  # (h, w, 3, PATCH, PATCH)
    rows = patches[source_centres[:, 0], source_centres[:, 1]].reshape(len(source_centres), -1)
    squares = np.square(rows).sum(axis=1)
    for chunk in np.array_split(query_centres, -(-len(query_centres) * len(source_centres) // PAIRS_PER_CHUNK)):
        query_patches = patches[chunk[:, 0], chunk[:, 1]].reshape(len(chunk), -1)
        nearest = source_centres[(squares - 2 * query_patches @ rows.T).argmin(axis=1)]
        field[chunk[:, 0], chunk[:, 1]] = nearest[:, ::-1]
    return field


def upsample_field(field: NDArray[np.integer], height: int, width: int) -> Field:
    """Double the resolution of a field: all four pixels of a cell keep the cell's shift, so that copied regions stay in one piece."""
    down, across = np.arange(height), np.arange(width)
    rows, columns = np.minimum(down // 2, field.shape[0] - 1), np.minimum(across // 2, field.shape[1] - 1)
    finer = 2 * field[rows][:, columns].astype(np.int32)
    finer[..., 0] += (across - 2 * columns)[None, :]
    finer[..., 1] += (down - 2 * rows)[:, None]
    return np.ascontiguousarray(np.clip(finer, 0, np.array([width - 1, height - 1])), np.int32)


def vote_colours(image: NDArray[np.float32], missing: BoolArray, field: Field, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy every hole pixel of an image (h, w, 3) from one source pixel.

    Of the overlapping patches, the shift that most of them share is chosen, the nearest ones counting more; of equals, the colour nearest
    to `mean` (h, w, 3), the average of the overlapping patches. The mean itself would blur: patches agree on edges and textures only to
    about a pixel.
    """
    filled, flat = mean.copy(), image.reshape(-1, 3)
    pixels = np.argwhere(missing)
    for chunk in np.array_split(pixels, -(-len(pixels) // PIXELS_PER_CHUNK)):
        means = mean[chunk[:, 0], chunk[:, 1]]
        sources = _source_indices(chunk, missing, field)  # (PATCH², pixels)
        best = _winning_votes(sources, np.square(flat[sources] - means).sum(axis=-1))
        winners = sources[best, np.arange(len(chunk))]
        filled[chunk[:, 0], chunk[:, 1]] = np.where((winners >= 0)[:, None], flat[winners], means)
    return filled


def _source_indices(pixels: NDArray[np.intp], missing: BoolArray, field: Field) -> NDArray[np.int32]:
    """Return the index of the source pixel by each overlapping patch, -1 for none: (n, 2) rows and columns → (PATCH², n)."""
    height, width = missing.shape
    votes = []
    for down, across in _offsets():
        rows, columns = pixels[:, 0] - down, pixels[:, 1] - across
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        centres = field[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        source_rows, source_columns = centres[:, 1] + np.int32(down), centres[:, 0] + np.int32(across)
        inside &= (source_rows >= 0) & (source_rows < height) & (source_columns >= 0) & (source_columns < width)
        inside &= ~missing[source_rows.clip(0, height - 1), source_columns.clip(0, width - 1)]
        votes.append(np.where(inside, source_rows * np.int32(width) + source_columns, np.int32(-1)))
    return np.stack(votes)


def _winning_votes(sources: NDArray[np.int32], differences: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the row of the winning vote for each pixel."""
    votes = np.zeros(sources.shape, np.float32)
    for source, (down, across) in zip(sources, _offsets(), strict=True):
        votes[sources == source] += np.float32(np.exp(-(down**2 + across**2) / 2))  # votes for the same source pixel share their shift
    votes -= differences * np.float32(1e-8)
    votes[sources < 0] = -np.inf
    best: NDArray[np.intp] = votes.argmax(axis=0)
    return best


def _offsets() -> Iterator[tuple[int, int]]:
    return ((down, across) for down in range(-HALF, HALF + 1) for across in range(-HALF, HALF + 1))
