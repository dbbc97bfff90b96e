"""Tokens in a transformer that merges them (ToMe, arXiv 2210.09461): the state of one forward pass, and a view of merged tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops


@dataclass(frozen=True)
class Tokens:
    """The residual stream of one forward pass. None of it is stored on a module, so that threads can share a model."""

    x: Tensor
    """(B, N, C)."""
    protected: int = 0
    """Special tokens in front that never merge: 0, 1 (class) or 2 (class and distillation)."""
    proportional_attention: bool = False
    """Proportional attention: keys count by their size."""
    traced: bool = False
    size: Tensor | None = None
    """(B, N, 1), number of input tokens per token; None before the first merge."""
    source: Tensor | None = None
    """(B, N, N_in) of 0 and 1, which input tokens each token holds; None before the first merge and if not traced."""
    metric: Tensor | None = None
    """(B, N, D), whose cosines compare tokens: from an attention branch whose result is not yet added."""
    token_owners: tuple[Tensor, ...] = ()
    """After each merge so far, if traced: the token that holds each input token, (B, N_in)."""

    @property
    def key_size(self) -> Tensor | None:
        return self.size if self.proportional_attention else None

    def add(self, residual: Tensor) -> Tokens:
        return replace(self, x=self.x + residual)

    def merge(self, metric: Tensor, r: int, residual: Tensor | None = None) -> Tokens:
        """Add a residual branch, then merge r tokens, or as many as can.

        metric: (B, N, D), whose cosines compare tokens, or (B, H, N, D), whose sum over heads does.
        """
        r = ops.effective_r(self.x.shape[1], r, self.protected)
        if r == 0:
            return self if residual is None else self.add(residual)
        matching = ops.bipartite_match(metric, r, protected=self.protected)
        if not self.traced:
            x, size = ops.merge(self.x, self.size, matching, residual)
            return replace(self, x=x, size=size)
        x = self.x if residual is None else self.x + residual
        x, size, source = ops.merge_traced(x, self.size, self.source, matching)
        return replace(self, x=x, size=size, source=source, token_owners=(*self.token_owners, source.argmax(dim=1)))

    def unmerge(self) -> Tensor:
        """Copy each token to the places of the input tokens that it holds → (B, N_in, C). After a merge this needs `traced`."""
        if self.size is None:
            return self.x
        assert self.source is not None
        return self.source.mT.to(self.x.dtype) @ self.x  # one 1 in each row: nothing is rounded

    def mean(self, first: int, count: int) -> Tensor:
        """Average the tokens from `first` on → (B, C). count: their number before any merge, the sum of their sizes."""
        x = self.x[:, first:]
        if self.size is None:
            return x.mean(dim=1)
        return ((x * self.size[:, first:]).sum(dim=1) / count).to(x.dtype)  # in the float32 of sizes: a sum may leave float16


def paint_merged_tokens(image: Tensor, source: Tensor, patch_size: int, *, special: int = 1) -> Tensor:
    """Paint each token's region of an image in its mean colour, with a border one pixel wide in another colour.

    image: uint8 (H, W, 3), as the model saw it before normalising; source: (tokens_out, tokens_in) of one image; special: number of class
    and distillation tokens, which come before the patches. Returns uint8 (H, W, 3).
    """
    height, width, _ = image.shape
    rows, columns = height // patch_size, width // patch_size
    owner = source[:, special:].argmax(dim=0).view(1, 1, rows, columns)
    regions = F.interpolate(owner.double(), size=(height, width)).long()[0, 0]  # (H, W), the token that holds each pixel
    tokens = int(owner.max()) + 1

    flat, pixels = regions.flatten(), image.reshape(-1, 3).double() / 255
    total = torch.zeros(tokens, 3, dtype=torch.float64).index_add_(0, flat, pixels)
    fill = total / flat.bincount(minlength=tokens).clamp(min=1).unsqueeze(1)  # (tokens, 3)

    framed = F.pad(regions, (1, 1, 1, 1), value=-1)  # outside the image is another region
    neighbours = torch.stack([framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]])
    interior = (neighbours == regions).all(dim=0).unsqueeze(-1)  # (H, W, 1)
    painted = torch.where(interior, fill[regions], border_colours(tokens)[regions])
    return (painted * 255).to(torch.uint8)


def border_colours(tokens: int) -> Tensor:
    """Return a colour per token in [0, 1], the same for every image: (tokens, 3)."""
    generator = random.Random(0)
    return torch.tensor([[generator.random() for _ in range(3)] for _ in range(tokens)], dtype=torch.float64)
