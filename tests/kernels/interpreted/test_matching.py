"""The matching kernels choose what the reference chooses."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from tests.kernels.interpreted.random_problems import Problem, assert_as_good, assert_same

seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seeds, st.sampled_from([1, 4, 16, 64]))
def test_exact_cosines_give_the_same_indices_ties_included(seed: int, channels: int) -> None:
    problem = Problem.draw(seed, tokens_up_to=40)
    assert_same(problem, problem.signs(channels))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seeds)
def test_rounded_cosines_give_partners_that_are_as_similar(seed: int) -> None:
    problem = Problem.draw(seed, tokens_up_to=40)
    assert_as_good(problem, problem.normal(problem.tokens, problem.channels))


@pytest.mark.parametrize("tokens", [128, 129, 197])
def test_tiles_meet_without_a_gap(tokens: int) -> None:
    problem = Problem(1, tokens, 16, 1, 40, torch.float32, seed=tokens)
    assert_same(problem, problem.signs(16))


def test_more_channels_than_a_tile_holds() -> None:
    problem = Problem(1, 21, 200, 1, 8, torch.float32, seed=4)
    assert_same(problem, problem.signs(256))
    assert_as_good(problem, problem.normal(21, 200))


def test_a_strided_view_is_read_where_it_lies() -> None:
    problem = Problem(2, 30, 16, 1, 9, torch.float32, seed=5)
    metric = problem.signs(16)
    wide = torch.stack([metric, -metric], dim=2)
    assert_same(problem, wide[:, :, 0])
    assert_same(problem, metric.mT.contiguous().mT)


def test_zeros_without_direction_come_first_as_in_reference() -> None:
    problem = Problem(1, 12, 4, 1, 3, torch.float32, seed=6)
    metric = problem.signs(4)
    metric[0, 4] = 0.0
    metric[0, 7] = 0.0
    assert_same(problem, metric)
    assert 4 in reference.bipartite_match(metric, 3, 1).src


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_shapes() -> None:
    for seed in range(int(os.environ["RANDOM_SHAPES"])):
        problem = Problem.draw(seed, tokens_up_to=256)
        assert_same(problem, problem.signs((1, 4, 16, 64)[seed % 4]))
        assert_as_good(problem, problem.normal(problem.tokens, problem.channels))
