"""Padded keys change no answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import ops
from kernels.key_padding import MULTIPLE, key_multiple
from models.layers.block import Attention
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT, ViTConfig


def draw(keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Strided as in a model, and sizes."""
    generator = torch.Generator().manual_seed(keys)
    qkv = torch.randn(2, keys, 3 * 4 * 8, generator=generator).to(dtype)
    q, k, v = qkv.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v, torch.randint(1, 9, (2, keys, 1), generator=generator).float()


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 145, 513])
@pytest.mark.parametrize("sized", [True, False])
def test_padding_changes_nothing_but_rounding(keys: int, sized: bool) -> None:
    q, k, v, size = draw(keys, torch.float64)
    size = size.double() if sized else None
    padded = ops.size_biased_attention(q, k, v, size, key_multiple=MULTIPLE)
    torch.testing.assert_close(padded, ops.size_biased_attention(q, k, v, size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sized", [True, False])
def test_padding_in_bfloat16_is_as_near_to_the_exact_answer(sized: bool) -> None:
    q, k, v, size = draw(145, torch.bfloat16)
    exact = ops.size_biased_attention(q.double(), k.double(), v.double(), size.double() if sized else None)
    padded = ops.size_biased_attention(q, k, v, size if sized else None, key_multiple=MULTIPLE)
    torch.testing.assert_close(padded.double(), exact, rtol=0.02, atol=0.02)


def test_a_model_with_padded_keys_answers_the_same() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=32, patch_size=4, width=48, depth=3, heads=3, classes=5)).eval()
    images, merge = torch.randn(2, 3, 32, 32), MergeSchedule.constant(9)
    with torch.inference_mode():
        expected = [model(images, merge=schedule).logits for schedule in (None, merge)]
        for module in model.modules():
            if isinstance(module, Attention):
                module.key_multiple = MULTIPLE
        found = [model(images, merge=schedule).logits for schedule in (None, merge)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_a_cpu_likes_is_measured_and_stays() -> None:
    assert key_multiple() in (1, MULTIPLE)
    assert key_multiple() == key_multiple()
