"""Choice of the tile sizes of a kernel: timed once for each kind of GPU, dtype and size of input, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton import knobs


def tuned(configs: Sequence[triton.Config], key: Sequence[str], interpreted: triton.Config) -> Callable[[Any], Any]:
    """Decorate a kernel with its candidates. key: its arguments that a choice depends on.

    interpreted: what Triton's interpreter takes, where nothing can be timed.
    """
    candidates = [interpreted] if knobs.runtime.interpret else list(configs)
    decorate: Callable[[Any], Any] = triton.autotune(candidates, key=list(key), cache_results=True)
    return decorate


def bucket(tokens: int) -> int:
    """Power of two at or above a number of tokens: merging changes it in every block, and not each number is timed for itself."""
    return max(16, int(triton.next_power_of_2(tokens)))
