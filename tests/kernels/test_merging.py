"""Properties of the merging operations beyond the recorded cases of ToMe (tests/golden/tome/matching)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import ops


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_merging_keeps_the_weighted_sum_of_all_tokens(generator: torch.Generator, protected: int) -> None:
    x, size = randn(generator, 3, 21, 5, dtype=torch.float64), torch.randint(1, 5, (3, 21, 1), generator=generator).double()
    merged, merged_size = ops.merge(x, size, ops.bipartite_match(x, 7, protected=protected))
    assert merged.shape == (3, 14, 5)
    torch.testing.assert_close((merged * merged_size).sum(1), (x * size).sum(1))
    torch.testing.assert_close(merged_size.sum(1), size.sum(1))


def test_special_tokens_stay_in_front_untouched(generator: torch.Generator) -> None:
    x = randn(generator, 2, 12, 4)
    x[:, 2] = x[:, 1] = x[:, 0]  # as similar as can be to what they must not merge with
    merged, size = ops.merge(x, None, ops.bipartite_match(x, 5, protected=2))
    assert torch.equal(merged[:, :2], x[:, :2])
    assert torch.equal(size[:, :2], torch.ones(2, 2, 1))


def test_at_most_half_of_the_unprotected_tokens_merge() -> None:
    assert [ops.effective_r(197, 1000, protected) for protected in (0, 1, 2)] == [98, 98, 97]
    assert ops.effective_r(2, 5, 2) == ops.effective_r(10, -3, 1) == 0


def test_exact_ties_merge_earlier_position_into_earlier() -> None:
    matching = ops.bipartite_match(torch.ones(2, 40, 4), 5)
    assert matching.src.tolist() == [[0, 2, 4, 6, 8]] * 2
    assert matching.unmerged[:, :15].tolist() == [list(range(10, 40, 2))] * 2
    assert matching.dst.tolist() == [[15] * 5] * 2  # token 1, behind the 15 even ones that stay


@pytest.mark.parametrize("traced_before", [False, True])
def test_a_traced_merge_is_a_merge_and_its_sources(generator: torch.Generator, traced_before: bool) -> None:
    x, size = randn(generator, 2, 15, 4), torch.randint(1, 5, (2, 15, 1), generator=generator).float()
    source = ops.merge_source(None, ops.bipartite_match(randn(generator, 2, 20, 4), 5)) if traced_before else None
    matching = ops.bipartite_match(x, 5, protected=1)
    traced = ops.merge_traced(x, size, source, matching)
    for found, expected in zip(traced, (*ops.merge(x, size, matching), ops.merge_source(source, matching)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_unmerging_gives_every_token_the_row_that_it_went_into(generator: torch.Generator, protected: int) -> None:
    x = randn(generator, 2, 16, 4)
    matching = ops.bipartite_match(x, 6, protected=protected)
    source = ops.merge_source(None, matching)  # (B, T_out, T)
    rows = randn(generator, 2, 10, 4)
    assert torch.equal(ops.unmerge(rows, matching), source.mT @ rows)
    assert torch.equal(source.sum(1), torch.ones(2, 16))


def test_a_sources_map_follows_tokens_through_two_merges(generator: torch.Generator) -> None:
    x = randn(generator, 2, 17, 4, dtype=torch.float64)
    first = ops.bipartite_match(x, 4, protected=1)
    once, size = ops.merge(x, None, first)
    second = ops.bipartite_match(once, 4, protected=1)
    twice, size = ops.merge(once, size, second)
    source = ops.merge_source(ops.merge_source(None, first), second).double()
    torch.testing.assert_close(source.sum(2, keepdim=True), size.double())
    torch.testing.assert_close(source @ x / size, twice)


def test_kth_matching_drops_tail_and_keeps_last_of_each_run(generator: torch.Generator) -> None:
    x = randn(generator, 1, 11, 4)
    matching = ops.kth_match(x, 3)
    assert matching.unmerged.tolist() == [[2, 5, 8]]
    assert ops.unmerge(ops.reduce(x, matching), matching).shape == (1, 9, 4)


def test_random_matching_is_reproduced_by_its_generator(generator: torch.Generator) -> None:
    x = randn(generator, 2, 9, 4)
    draws = [ops.random_match(x, 4, generator=torch.Generator().manual_seed(seed)).src for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_token_of_size_three_attends_as_three_equal_tokens(generator: torch.Generator) -> None:
    q, k, v = (randn(generator, 2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    size = torch.tensor([1, 3, 2, 1, 4], dtype=torch.float64)
    copies = size.long()
    expected = ops.size_biased_attention(q, k.repeat_interleave(copies, dim=2), v.repeat_interleave(copies, dim=2))
    torch.testing.assert_close(ops.size_biased_attention(q, k, v, size.view(1, 5, 1).expand(2, -1, -1)), expected)


def test_gradients_pass_through_merging(generator: torch.Generator) -> None:
    metric = randn(generator, 2, 9, 3)
    size = torch.randint(1, 4, (2, 9, 1), generator=generator).double()
    x = randn(generator, 2, 9, 3, dtype=torch.float64).requires_grad_()
    matching = ops.bipartite_match(metric, 4, protected=1)
    assert torch.autograd.gradcheck(lambda value: ops.merge(value, size, matching)[0], (x,))
    assert torch.autograd.gradcheck(lambda value: ops.unmerge(ops.reduce(value, matching, "mean"), matching), (x,))
    assert torch.autograd.gradcheck(lambda value: ops.reduce(value, matching, "amax"), (x,))


def test_gradients_pass_through_biased_attention(generator: torch.Generator) -> None:
    size = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).view(1, 3, 1)
    inputs = tuple(randn(generator, 1, 2, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(lambda q, k, v: ops.size_biased_attention(q, k, v, size), inputs)


@pytest.mark.parametrize("sized", [False, True])
def test_attention_gradients_are_same_without_fused_attention(sized: bool, generator: torch.Generator) -> None:
    q, k, v = (part.double().requires_grad_() for part in randn(generator, 3, 2, 4, 33, 16))
    size = torch.randint(0, 4, (2, 33, 1), generator=generator).double() if sized else None
    slope = randn(generator, 2, 4, 33, 16).double()
    expected = ops.size_biased_attention(q, k, v, size)
    with sdpa_kernel(SDPBackend.MATH):
        found = ops.size_biased_attention(q, k, v, size)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k, v), slope), torch.autograd.grad(expected, (q, k, v), slope))


def test_matching_needs_no_gradient(generator: torch.Generator) -> None:
    metric = randn(generator, 1, 8, 4).requires_grad_()
    matching = ops.bipartite_match(metric, 2)
    assert not any(index.requires_grad for index in (matching.unmerged, matching.src, matching.dst))


def test_autocast_does_not_change_which_tokens_merge(generator: torch.Generator) -> None:
    metric = randn(generator, 4, 64, 16)
    metric[:, 1::2] = metric[:, ::2] + 1e-4 * randn(generator, 4, 32, 16)  # near ties, which bfloat16 products would decide otherwise
    plain = ops.bipartite_match(metric, 12, protected=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ops.bipartite_match(metric, 12, protected=1)
    assert torch.equal(plain.src, cast.src)
    assert torch.equal(plain.dst, cast.dst)


def test_bfloat16_sizes_are_exact_and_untouched_rows_kept(generator: torch.Generator) -> None:
    x = randn(generator, 1, 12, 4).bfloat16()
    size = torch.full((1, 12, 1), 257.0)  # no bfloat16 number
    matching = ops.bipartite_match(x, 3, protected=1)
    merged, merged_size = ops.merge(x, size, matching)
    assert merged.dtype is torch.bfloat16
    assert merged_size.sum() == 12 * 257
    untouched = [row for row in range(9) if row not in matching.dst[0].tolist()]
    assert torch.equal(merged[0, untouched], x[0, matching.unmerged[0, untouched]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.bipartite_match(x[0], 1), "metric: shape"),
        (lambda x: ops.bipartite_match(x, 1, protected=3), "protected: 3"),
        (lambda x: ops.random_match(x, 8), "one must stay"),
        (lambda x: ops.merge(x[0], None, ops.bipartite_match(x, 1)), "x: shape"),
    ],
)
def test_misuse_is_named(call, message: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        call(randn(generator, 1, 8, 4))
