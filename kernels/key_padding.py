"""Attention over a number of keys that a CPU's matrix instructions like.

On CPUs with AMX, PyTorch's attention in bfloat16 takes up to twice as long for 145 keys as for 144. Whether a CPU does so is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference


def is_faster(candidate: Callable[[], object], baseline: Callable[[], object], *, max_ratio: float, rounds: int) -> bool:
    """Return True if `candidate` takes at most `max_ratio` of the CPU time of `baseline`.

    The shortest round of each counts. One round before is not measured, since it prepares what is cached.
    """
    seconds: dict[Callable[[], object], list[float]] = {candidate: [], baseline: []}
    with torch.inference_mode():
        for _ in range(1 + rounds):
            for call, times in seconds.items():
                started_at = time.thread_time()
                call()
                times.append(time.thread_time() - started_at)
    return min(seconds[candidate][1:]) <= max_ratio * min(seconds[baseline][1:])


MULTIPLE = 16
MAX_TIME_RATIO = 0.9
"""Maximum time of attention with padding, divided by the time without, for padding to be used."""
_KEYS = 145
_ROUNDS = 5


def padded_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, multiple: int) -> Tensor:
    """Pad keys and values to the next multiple, mask the padding, and attend: (B, H, N, D). Means `reference.size_biased_attention`."""
    keys = k.shape[2]
    missing = -keys % multiple
    if missing == 0:
        return reference.size_biased_attention(q, k, v, size, 0.0)
    k, v = (F.pad(x, (0, 0, 0, missing)) for x in (k, v))  # (B, H, M, D)
    bias = q.new_zeros(1, keys) if size is None else size.log().to(q.dtype).squeeze(2)  # (B or 1, N)
    bias = F.pad(bias, (0, missing), value=-torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.view(-1, 1, 1, keys + missing))


@cache
def key_multiple() -> int:
    """Return the multiple to pad keys to in bfloat16 on this CPU: 16 if that is faster, copies included, else 1.

    Measured once per process.
    """
    q, k, v = torch.randn(3, 4, 6, _KEYS, 64).bfloat16()
    size = torch.ones(4, _KEYS, 1)
    padded, plain = (partial(padded_attention, q, k, v, size, multiple) for multiple in (MULTIPLE, 1))
    return MULTIPLE if is_faster(padded, plain, max_ratio=MAX_TIME_RATIO, rounds=_ROUNDS) else 1
