"""Counter-based random numbers: who draws what, and whether it looks random."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from training import random_draws

DRAW = torch.tensor([3, 10**15, -7, 2**63 - 1])


def splitmix64(state: int, count: int) -> list[int]:
    """Compute the published generator in Python's unbounded integers."""
    values = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        values.append(finalise(state))
    return values


def finalise(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_draws_are_splitmix64_from_draw_and_stream() -> None:
    key = random_draws._key("mask") % 2**64
    for row, draw in zip(random_draws.words(DRAW, 5, "mask").tolist(), DRAW.tolist(), strict=True):
        start = finalise(finalise(draw % 2**64) ^ key)
        assert [value % 2**64 for value in row] == splitmix64(start, 5)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda draw: random_draws.uniform(draw, (5, 3), "a"),
        lambda draw: random_draws.normal(draw, (5, 3), "a"),
        lambda draw: random_draws.integers(draw, (4,), -3, 12, "a"),
        lambda draw: random_draws.permutation(draw, 9, "a"),
    ],
)
def test_a_sample_draws_the_same_in_any_batch(drawn: Callable[[Tensor], Tensor]) -> None:
    joint = drawn(DRAW)
    for place, draw in enumerate(DRAW):
        assert torch.equal(drawn(draw[None])[0], joint[place])
    assert torch.equal(drawn(DRAW.flip(0)), joint.flip(0))


def test_streams_draws_and_positions_give_other_numbers() -> None:
    values = torch.cat([random_draws.words(torch.arange(50), 40, stream).flatten() for stream in ("a", "b", 0, 1)])
    assert len(values.unique()) == len(values)


def test_longer_draws_start_like_shorter_ones() -> None:
    assert torch.equal(random_draws.normal(DRAW, (8,), "x")[:, :5], random_draws.normal(DRAW, (5,), "x"))
    assert torch.equal(random_draws.uniform(DRAW, (2, 4), "x").flatten(1)[:, :5], random_draws.uniform(DRAW, (5,), "x"))


def many(values: Tensor) -> Tensor:
    return values.flatten().double()


def test_values_have_the_distributions_that_they_are_named_after() -> None:
    """Kolmogorov-Smirnov and chi-squared at one in a thousand, on draws that are neighbours, as a data set's are."""
    draw = torch.arange(400)
    assert stats.kstest(many(random_draws.uniform(draw, (100,), "s")), "uniform").pvalue > 1e-3
    assert stats.kstest(many(random_draws.normal(draw, (100,), "s")), "norm").pvalue > 1e-3
    counts = random_draws.integers(draw, (100,), 0, 16, "s").flatten().bincount(minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-3
    first = random_draws.permutation(draw, 8, "s")
    assert torch.equal(first.sort(dim=1).values, torch.arange(8).expand(400, 8))
    assert stats.chisquare(first[:, 0].bincount(minlength=8)).pvalue > 1e-3


def test_draws_are_independent_over_rows_draws_and_streams() -> None:
    draw = torch.arange(2000)
    a, b = random_draws.normal(draw, (8,), "a"), random_draws.normal(draw, (8,), "b")
    table = torch.cat([a, b, a.roll(1, dims=0)], dim=1)  # the last: each draw's neighbour
    correlation = table.T.corrcoef() - torch.eye(24)
    assert correlation.abs().max() < 0.11  # 5 standard deviations of 1 / √2000


def test_every_bit_of_a_draw_flips_half_of_the_bits() -> None:
    draw = torch.arange(200)
    for bit in (0, 1, 17, 40, 63):
        other = draw ^ (torch.tensor(1) << bit)
        changed = random_draws.words(draw, 4, "s") ^ random_draws.words(other, 4, "s")
        flipped = sum(int((changed >> place & 1).sum()) for place in range(64)) / (changed.numel() * 64)
        assert flipped == pytest.approx(0.5, abs=0.01)


def test_a_batch_has_one_draw_whatever_the_order_of_its_samples() -> None:
    assert torch.equal(random_draws.batch_draw(DRAW), random_draws.batch_draw(DRAW.flip(0)))
    assert random_draws.batch_draw(DRAW).shape == (1,)
    assert not torch.equal(random_draws.batch_draw(DRAW), random_draws.batch_draw(DRAW + 1))


def test_compiled_code_draws_the_same() -> None:
    def draw_values(draw: Tensor) -> Tensor:
        return 2 * random_draws.normal(draw, (7,), "x") + random_draws.uniform(draw, (7,), "y")

    assert torch.equal(torch.compile(draw_values, backend="eager")(DRAW), draw_values(DRAW))
