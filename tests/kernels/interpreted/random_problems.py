"""Random problems for the kernels, and what it means that two matchings agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import ops, reference
from kernels import triton as kernels
from kernels.ops import Matching


@dataclass(frozen=True)
class Problem:
    batch: int
    tokens: int
    channels: int
    protected: int
    r: int
    dtype: torch.dtype
    seed: int

    @staticmethod
    def draw(seed: int, tokens_up_to: int) -> Problem:
        """Small numbers of tokens as often as large ones; r anywhere between 1 and its cap, the cap included."""
        generator = torch.Generator().manual_seed(seed)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        protected = pick(0, 2)
        tokens = min(tokens_up_to, int(2 ** (float(torch.rand((), generator=generator)) * 7 + 1)) + protected + pick(0, 1))
        cap = ops.effective_r(tokens, tokens, protected)
        dtype = (torch.float32, torch.float16, torch.bfloat16)[pick(0, 2)]
        return Problem(pick(1, 2), tokens, pick(1, 80), protected, cap if pick(0, 3) == 0 else pick(1, cap), dtype, seed)

    def normal(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.batch, *shape, generator=generator).to(self.dtype)

    def signs(self, channels: int) -> Tensor:
        """Draw (B, T, C) of 1 and -1. With 1, 4, 16 or 64 channels every cosine is exact, and few channels make many exact ties."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return (torch.randint(0, 2, (self.batch, self.tokens, channels), generator=generator) * 2 - 1).to(self.dtype)

    def sizes(self, tokens: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randint(1, 9, (self.batch, tokens, 1), generator=generator).float()

    def matching(self) -> Matching:
        return reference.bipartite_match(self.normal(self.tokens, self.channels), self.r, self.protected)


def match(problem: Problem, metric: Tensor) -> Matching:
    return Matching(*kernels.bipartite_match(metric, problem.r, problem.protected))


def assert_same(problem: Problem, metric: Tensor) -> None:
    """Compare indices of problems in which rounding decides nothing."""
    found, expected = match(problem, metric), reference.bipartite_match(metric, problem.r, problem.protected)
    assert torch.equal(found.src, expected.src), problem
    assert torch.equal(found.dst, expected.dst), problem
    assert torch.equal(found.unmerged, expected.unmerged), problem


def assert_as_good(problem: Problem, metric: Tensor) -> None:
    """Require sources and destinations as similar as the reference's except for rounding, and every token in one place."""
    found, expected = match(problem, metric), reference.bipartite_match(metric, problem.r, problem.protected)
    directions = torch.nn.functional.normalize(metric.double(), dim=-1)
    similar = [
        (
            directions.gather(1, matching.src.unsqueeze(-1).expand(-1, -1, directions.shape[2]))
            * directions.gather(1, matching.unmerged.gather(1, matching.dst).unsqueeze(-1).expand(-1, -1, directions.shape[2]))
        ).sum(-1)
        for matching in (found, expected)
    ]
    torch.testing.assert_close(*similar, atol=2e-6, rtol=0.0, msg=lambda text: f"{problem}: {text}")
    positions = torch.cat([found.unmerged, found.src], dim=1).sort(dim=1).values
    assert torch.equal(positions, torch.arange(problem.tokens).expand(problem.batch, -1)), problem
    assert found.unmerged[:, : problem.protected].equal(torch.arange(problem.protected).expand(problem.batch, -1)), problem
