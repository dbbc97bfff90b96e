"""The attention kernels give the reference's values and gradients."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels import triton as kernels

VALUES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Absolute, for values of size 1: weights are rounded to the precision of the values before they are multiplied."""
GRADIENTS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    queries: int
    keys: int
    channels: int
    dtype: torch.dtype
    seed: int

    @staticmethod
    def draw(seed: int, tokens_up_to: int) -> Shape:
        generator = torch.Generator().manual_seed(seed)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        dtype = (torch.float32, torch.float16, torch.bfloat16)[pick(0, 2)]
        return Shape(pick(1, 2), pick(1, 3), pick(1, tokens_up_to), pick(1, tokens_up_to), pick(1, 80), dtype, seed)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        q, k, v = (
            torch.randn(self.batch, self.heads, rows, self.channels, generator=generator).clamp(-2, 2).to(self.dtype)
            for rows in (self.queries, self.keys, self.keys)
        )
        return q, k, v, torch.randint(1, 30, (self.batch, self.keys, 1), generator=generator).float()


def assert_attends(shape: Shape) -> None:
    q, k, v, size = shape.inputs()
    found, _ = kernels.size_biased_attention(q, k, v, size)
    expected = reference.size_biased_attention(q.double(), k.double(), v.double(), size.double(), 0.0)
    assert found.dtype is shape.dtype
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=VALUES[shape.dtype], msg=lambda text: f"{shape}: {text}")


def assert_gradients(shape: Shape) -> None:
    *parts, size = shape.inputs()
    leaves = [part.requires_grad_() for part in parts]
    attended, _ = kernels.size_biased_attention(*leaves, size)
    slope = torch.linspace(-1, 1, attended.numel()).view(attended.shape).to(attended.dtype)
    found = torch.autograd.grad(attended, leaves, slope)
    wide = [part.detach().double().requires_grad_() for part in parts]
    expected = torch.autograd.grad(reference.size_biased_attention(*wide, size.double(), 0.0), wide, slope.double())
    for name, ours, theirs in zip("qkv", found, expected, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(
            ours.double(), theirs, rtol=0.0, atol=GRADIENTS[shape.dtype] * scale, msg=lambda text, name=name: f"{shape}, {name}: {text}"
        )


@settings(max_examples=7, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_values_are_the_references(seed: int) -> None:
    assert_attends(Shape.draw(seed, tokens_up_to=40))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_gradients_are_the_references(seed: int) -> None:
    assert_gradients(Shape.draw(seed, tokens_up_to=40))


@pytest.mark.parametrize(("queries", "keys"), [(64, 96), (65, 97), (1, 70), (70, 1)])
def test_tiles_meet_without_a_gap(queries: int, keys: int) -> None:
    shape = Shape(1, 2, queries, keys, 16, torch.float32, seed=queries)
    assert_attends(shape)
    assert_gradients(shape)


def test_heads_are_read_where_the_projection_left_them() -> None:
    qkv = torch.randn(2, 21, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # views, as `models.layers.block` makes them
    size = torch.full((2, 21, 1), 3.0)
    found, _ = kernels.size_biased_attention(q, k, v, size)
    torch.testing.assert_close(found, reference.size_biased_attention(q, k, v, size, 0.0), rtol=0.0, atol=2e-6)
    assert found.transpose(1, 2).is_contiguous()  # for the projection after it


def test_keys_of_size_zero_are_not_seen() -> None:
    q, k, v, size = Shape(1, 1, 5, 70, 8, torch.float32, seed=3).inputs()
    size[:, :40] = 0.0  # a whole tile of keys, and more
    found, _ = kernels.size_biased_attention(q, k, v, size)
    expected = reference.size_biased_attention(q, k[:, :, 40:], v[:, :, 40:], size[:, 40:], 0.0)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-6)


def test_large_logits_do_not_overflow() -> None:
    q, k, v, size = Shape(1, 1, 9, 33, 8, torch.float32, seed=4).inputs()
    found, _ = kernels.size_biased_attention(q * 300, k * 300, v, size)
    torch.testing.assert_close(found, reference.size_biased_attention(q * 300, k * 300, v, size, 0.0), rtol=0.0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_shapes() -> None:
    for seed in range(int(os.environ["RANDOM_SHAPES"])):
        shape = Shape.draw(seed, tokens_up_to=48 if seed % 16 else 256)
        assert_attends(shape)
        if seed % 8 == 0:
            assert_gradients(shape)
