"""Grids that a GPU takes: 2**31 - 1 programs in the first dimension, 65,535 in the others (CUDA C++ Programming Guide)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import triton as kernels
from kernels.ops import Matching, effective_r
from kernels.triton import attention, matching, merging

MAX_GRID = 65_535


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Grids of the launches; nothing runs."""
    seen: list[tuple[int, ...]] = []

    class LaunchRecorder:
        def __getitem__(self, grid: tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]]) -> Callable[..., None]:
            tiles = dict.fromkeys(("BLOCK_EVEN", "BLOCK_ROWS", "BLOCK_QUERIES", "BLOCK_KEYS"), 16)
            return lambda *arguments, **options: seen.append(grid(tiles) if callable(grid) else grid)

    launched: Any = LaunchRecorder()
    for module, names in (
        (matching, ("_best_partner", "_rank", "_select")),
        (merging, ("_merge", "_merge_backward")),
        (attention, ("_attend", "_attend_backward_keys", "_attend_backward_queries")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, launched)
    return seen


def test_samples_and_heads_may_exceed_grid_dimension(grids: list[tuple[int, ...]]) -> None:
    batch, tokens = MAX_GRID + 1, 5
    x = torch.zeros(batch, tokens, 1).requires_grad_()
    found = Matching(*kernels.bipartite_match(x.detach(), effective_r(tokens, 2, 1), 1))
    found = Matching(*(torch.zeros_like(index) for index in (found.unmerged, found.src, found.dst)))
    merged, _, _ = kernels.merge(x, None, None, found.unmerged, found.src, found.dst, False)
    merged.sum().backward()
    parts = [torch.zeros(MAX_GRID // 16 + 1, 16, tokens, 1).requires_grad_() for _ in range(3)]
    attended, _ = kernels.size_biased_attention(*parts, torch.ones(MAX_GRID // 16 + 1, tokens, 1))
    attended.sum().backward()
    assert len(grids) == 8
    assert all(size <= MAX_GRID for grid in grids for size in grid[1:])
