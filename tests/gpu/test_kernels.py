"""The Triton kernels on a CUDA device, against the reference: `make test-gpu`. On a CPU they run in Triton's interpreter
(`tests/kernels/interpreted`), which knows neither tiles that do not fit nor types that a GPU does not multiply."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from kernels import ops, reference
from kernels.ops import Matching
from kernels.triton.merging import MIN_CAPABILITY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < MIN_CAPABILITY, reason="this GPU is too old for Triton's kernels"
    ),
]

DEVICE = "cuda"
VALUES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute, for values of size 1."""
dtypes = pytest.mark.parametrize("dtype", list(VALUES), ids=str)
shapes = pytest.mark.parametrize(
    ("batch", "tokens", "r", "protected"),
    [(1, 2, 1, 0), (2, 3, 1, 1), (2, 65, 13, 1), (2, 65, 32, 1), (3, 197, 1, 2), (2, 198, 97, 2), (1, 1569, 65, 1), (1, 8192, 4096, 0)],
)


def signs(batch: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """Draw (B, T, 64) of 1 and -1: every cosine is exact, and many are equal."""
    generator = torch.Generator().manual_seed(tokens)
    return (torch.randint(0, 2, (batch, tokens, 64), generator=generator) * 2 - 1).to(dtype)


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def sizes(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 9, (batch, tokens, 1), generator=torch.Generator().manual_seed(tokens)).float()


def on_device(matching: Matching) -> Matching:
    return Matching(matching.unmerged.to(DEVICE), matching.src.to(DEVICE), matching.dst.to(DEVICE))


def test_they_are_what_runs() -> None:
    assert ops._kernels(torch.zeros(1, device=DEVICE)) is not None


@dtypes
@shapes
def test_the_same_tokens_match(batch: int, tokens: int, r: int, protected: int, dtype: torch.dtype) -> None:
    metric = signs(batch, tokens, dtype)
    found, expected = ops.bipartite_match(metric.to(DEVICE), r, protected=protected), reference.bipartite_match(metric, r, protected)
    for part in ("unmerged", "src", "dst"):
        assert torch.equal(getattr(found, part).cpu(), getattr(expected, part)), part


@dtypes
@shapes
def test_the_same_tokens_come_out_with_the_same_gradient(batch: int, tokens: int, r: int, protected: int, dtype: torch.dtype) -> None:
    x, size = normal(batch, tokens, 192, dtype=dtype), sizes(batch, tokens)
    matching = reference.bipartite_match(signs(batch, tokens, dtype), r, protected)
    exact, on_gpu = x.double().requires_grad_(), x.to(DEVICE).requires_grad_()
    merged, merged_size, source = ops.merge_traced(on_gpu, size.to(DEVICE), None, on_device(matching))
    expected, expected_size = reference.merge(exact, size.double(), matching)
    torch.testing.assert_close(merged.double().cpu(), expected, rtol=0.0, atol=VALUES[dtype])
    assert torch.equal(merged_size.cpu(), expected_size.float())
    assert torch.equal(source.cpu(), ops.merge_source(None, matching))
    merged.float().square().sum().backward()
    expected.square().sum().backward()
    assert on_gpu.grad is not None and exact.grad is not None
    torch.testing.assert_close(on_gpu.grad.double().cpu(), exact.grad, rtol=0.0, atol=4 * VALUES[dtype])


@dtypes
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "channels"), [(2, 3, 65, 64), (1, 1, 1, 8), (2, 2, 197, 128), (1, 2, 1569, 80), (1, 1, 8192, 64)]
)
def test_attention_sees_the_same_with_the_same_gradients(batch: int, heads: int, tokens: int, channels: int, dtype: torch.dtype) -> None:
    qkv, size = normal(batch, tokens, 3, heads, channels, dtype=dtype), sizes(batch, tokens)
    exact, on_gpu = qkv.double().requires_grad_(), qkv.to(DEVICE).requires_grad_()
    found = ops.size_biased_attention(*on_gpu.permute(2, 0, 3, 1, 4), size.to(DEVICE))
    expected = reference.size_biased_attention(*exact.permute(2, 0, 3, 1, 4), size.double(), 0.0)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0.0, atol=VALUES[dtype])
    found.float().square().sum().backward()
    expected.square().sum().backward()
    assert on_gpu.grad is not None and exact.grad is not None
    scale = max(1.0, float(exact.grad.abs().max()))
    torch.testing.assert_close(on_gpu.grad.double().cpu(), exact.grad, rtol=0.0, atol=4 * VALUES[dtype] * scale)


def test_two_threads_may_run_a_new_shape_at_once() -> None:
    """Tile sizes are chosen then, by timing them."""
    metric = signs(2, 311, torch.bfloat16)
    expected = reference.bipartite_match(metric, 100, 1)
    found: list[Matching] = []

    def slot() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            found.append(ops.bipartite_match(metric.to(DEVICE), 100, protected=1))
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=slot) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and all(torch.equal(one.dst.cpu(), expected.dst) for one in found)
