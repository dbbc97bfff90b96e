"""The merge kernel gives the reference's tokens, sizes, sources and gradients."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import ops, reference
from kernels import triton as kernels
from kernels.ops import Matching
from tests.kernels.interpreted.random_problems import Problem

ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative, one unit in the last place: the kernel rounds once, at the end."""


def merge(x: Tensor, size: Tensor | None, source: Tensor | None, matching: Matching, traced: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    return kernels.merge(x, size, source, matching.unmerged, matching.src, matching.dst, traced)


def assert_merges(problem: Problem) -> None:
    x, size, matching = problem.normal(problem.tokens, problem.channels), problem.sizes(problem.tokens), problem.matching()
    first, first_size, first_source = merge(x, None, None, matching)
    assert_rounded(first, x, None, problem)
    assert torch.equal(first_size, reference.merge(x, None, matching)[1]), problem
    assert torch.equal(first_source, ops.merge_source(None, matching)), problem
    source = torch.eye(problem.tokens).repeat_interleave(2, dim=1).expand(problem.batch, -1, -1)
    second, second_size, second_source = merge(x, size, source, matching)
    assert_rounded(second, x, size, problem)
    assert torch.equal(second_size, reference.merge(x, size, matching)[1]), problem
    assert torch.equal(second_source, ops.merge_source(source, matching)), problem


def assert_rounded(found: Tensor, x: Tensor, size: Tensor | None, problem: Problem) -> None:
    """Means of n tokens in float32: n + 2 roundings of what is added up, the row's own token and each one's distance to it, which may
    cancel (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2); and a unit in the last place of the result, which the
    interpreter may cut off."""
    matching = problem.matching()
    expected, _ = reference.merge(x.double(), size, matching)
    ours = x.double().abs().gather(1, matching.unmerged.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    added = reference.merge(x.double().abs(), size, matching)[0] + 2 * ours
    count = reference.merge(x, None, matching)[1]
    allowed = (count + 2) * torch.finfo(torch.float32).eps / 2 * added + torch.finfo(x.dtype).eps * expected.abs()
    worst = ((found.double() - expected).abs() - allowed).max() if found.numel() else torch.zeros(())
    assert worst <= 0, f"{problem}: {worst.item():.2e} beyond what roundings explain"


def assert_gradient(problem: Problem) -> None:
    x, size, matching = problem.normal(problem.tokens, problem.channels).requires_grad_(), problem.sizes(problem.tokens), problem.matching()
    merged, _, _ = merge(x, size, None, matching, traced=False)
    slope = torch.linspace(-1, 1, merged.numel()).view_as(merged).to(merged.dtype)
    (found,) = torch.autograd.grad(merged, x, slope)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.merge(wide, size.double(), matching)[0], wide, slope.double())
    tolerance = ROUNDING[problem.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-7, msg=lambda text: f"{problem}: {text}")


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_tokens_sizes_and_sources_are_the_references(seed: int) -> None:
    assert_merges(Problem.draw(seed, tokens_up_to=24))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_gradients_are_the_references(seed: int) -> None:
    assert_gradient(Problem.draw(seed, tokens_up_to=24))


def test_many_sources_of_one_token_are_added_across_blocks() -> None:
    x = torch.randn(1, 68, 5, generator=torch.Generator().manual_seed(0))
    sources = torch.arange(0, 68, 2).unsqueeze(0)
    matching = Matching(unmerged=torch.arange(1, 68, 2).unsqueeze(0), src=sources, dst=torch.full_like(sources, 7))
    merged, size, source = merge(x, None, None, matching)
    torch.testing.assert_close(merged, reference.merge(x, None, matching)[0])
    assert size[0, 7] == 35 == source[0, 7].sum()


def test_blocks_of_channels_and_of_input_tokens_meet() -> None:
    problem = Problem(1, 300, 300, 1, 5, torch.float32, seed=1)
    assert_merges(problem)


def test_untouched_rows_keep_bits_and_second_run_is_equal() -> None:
    problem = Problem(1, 40, 8, 1, 12, torch.bfloat16, seed=2)
    x, matching = problem.normal(40, 8), problem.matching()
    merged, _, _ = merge(x, problem.sizes(40), None, matching)
    again, _, _ = merge(x, problem.sizes(40), None, matching)
    untouched = [row for row in range(28) if row not in matching.dst[0].tolist()]
    assert torch.equal(merged[0, untouched], x[0, matching.unmerged[0, untouched]])
    assert torch.equal(merged, again)


def test_tokens_that_a_matching_drops_get_no_gradient() -> None:
    x = torch.randn(1, 11, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    matching = ops.kth_match(x, 3)
    (gradient,) = torch.autograd.grad(merge(x, None, None, matching, traced=False)[0].sum(), x)
    assert torch.equal(gradient[0, 9:], torch.zeros(2, 4))
    assert gradient[0, :9].sum() == pytest.approx(3 * 4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_shapes() -> None:
    for seed in range(int(os.environ["RANDOM_SHAPES"])):
        problem = Problem.draw(seed, tokens_up_to=48 if seed % 8 else 256)
        assert_merges(problem)
        if seed % 4 == 0:
            assert_gradient(problem)
