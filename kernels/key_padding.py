"""Attention over a number of keys that a CPU's matrix instructions like.

On CPUs with AMX, PyTorch's attention in bfloat16 takes up to twice as long for 145 keys as for 144. Whether a CPU does so is measured.
"""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.timing import pays

MULTIPLE = 16
PAYS = 0.9
"""Padding must take at most this share of the time."""
_KEYS = 145
_TURNS = 5


def padded_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, multiple: int) -> Tensor:
    """As `reference.size_biased_attention`, with keys and values that nobody sees up to the next multiple. Queries stay as they are."""
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
    """Multiple that keys are padded to in bfloat16 on this CPU: 16 if that is faster, copies included, else 1. Measured once a process."""
    q, k, v = torch.randn(3, 4, 6, _KEYS, 64).bfloat16()
    size = torch.ones(4, _KEYS, 1)
    padded, plain = (partial(padded_attention, q, k, v, size, multiple) for multiple in (MULTIPLE, 1))
    return MULTIPLE if pays(padded, plain, share=PAYS, turns=_TURNS) else 1
