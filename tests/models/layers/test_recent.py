"""Arrays that are kept for long have pages of their own."""

from __future__ import annotations

import psutil
import pytest
import torch

from models.layers.stepwise import copy_to_own_pages

MIB = 2**20


VALUES = {
    "a part": torch.randn(3, 4, 5)[:, 1:3],
    "whole numbers": torch.arange(7),
    "nothing": torch.zeros(0, 3),
    "a scalar": torch.tensor(2.5),
    "bits": torch.tensor([True, False]),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_copy_is_equal_and_independent(values: torch.Tensor) -> None:
    expected, copy = values.clone(), copy_to_own_pages(values)
    assert copy.dtype == values.dtype and copy.shape == values.shape
    values.zero_()
    assert torch.equal(copy, expected)
    copy.fill_(1)


def test_its_memory_goes_back_with_it() -> None:
    process, values = psutil.Process(), torch.ones(MIB, dtype=torch.uint8)
    before = process.memory_info().rss
    retained = [copy_to_own_pages(values) for _ in range(200)]
    assert process.memory_info().rss - before > 190 * MIB
    part = retained[7][:5]
    retained.clear()
    assert process.memory_info().rss - before < 20 * MIB
    assert part.tolist() == [1] * 5
