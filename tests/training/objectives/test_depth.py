"""Depth up to scale and shift: what the loss sees, and what it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.systems.depth.model import LiteDepth
from tests.training.objectives.cases import draw, make
from training.objectives.depth import DepthObjective, DepthSettings, align, gradients, spread_to_one


def sample(seed: int, side: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    answer, depth = torch.randn(2, 3, side, side, generator=generator)
    return answer + 0.5 * depth, depth, torch.rand(3, side, side, generator=generator) > 0.3


def test_scale_and_shift_are_those_of_least_squares() -> None:
    answer, depth, valid = sample(0)
    found = align(answer, depth, valid)
    for row in range(3):
        mask = valid[row].numpy()
        x, y = answer[row].numpy()[mask], spread_to_one(depth, valid)[row].numpy()[mask]
        slope, offset = np.polyfit(x, y, 1)
        assert slope > 0
        np.testing.assert_allclose(found[row].numpy()[mask], slope * x + offset, atol=1e-5)
        assert (found[row][~valid[row]] == 0).all()


def test_depth_loss_ignores_units_and_counts_inversion_as_flat() -> None:
    answer, depth, valid = sample(1)
    torch.testing.assert_close(align(7 * answer - 3, 0.2 * depth + 9, valid), align(answer, depth, valid), atol=1e-4, rtol=1e-4)
    assert align(-depth, depth, valid).abs().max() == 0
    torch.testing.assert_close(align(depth, depth, valid), spread_to_one(depth, valid), atol=1e-5, rtol=1e-5)
    assert not align(torch.ones_like(answer), depth, valid).any()


def test_gradients_are_differences_of_known_neighbours() -> None:
    errors, valid = torch.zeros(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    errors[0, :, 2:] = 3.0
    assert gradients(errors, valid, 1).item() == pytest.approx((3 / 3 + 0) / 2)  # one of three neighbours across differs
    valid[0, :, 2] = False
    assert gradients(errors, valid, 1).item() == 0


def test_pixels_depth_and_mask_move_together() -> None:
    objective, _ = make("depth")
    assert isinstance(objective, DepthObjective)
    place = torch.linspace(-1, 1, 32).expand(4, 32, 32).contiguous()
    pixels = place.unsqueeze(1).expand(4, 3, 32, 32).contiguous()
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    moved, depth, opposite = objective.augment(pixels, place, valid, draw())
    assert (depth - moved[:, 0])[opposite].abs().max() < 0.07  # nearest against bilinear: half a pixel
    assert opposite.float().mean() < 0.95 and opposite.any(dim=2).any(dim=1).all()
    signs = {bool((depth[row][opposite[row]][-1] > depth[row][opposite[row]][0]).item()) for row in range(4)}
    assert signs == {True, False}
    lit = DepthObjective(objective.model, DepthSettings(light=0.4)).relight(pixels, draw())
    assert not torch.allclose(lit, pixels) and torch.equal(objective.relight(pixels, draw()), pixels)
    for row in range(4):
        for channel in range(3):  # each pixel by the same line, so that edges stay
            x, y = pixels[row, channel].flatten().numpy(), lit[row, channel].flatten().numpy()
            slope, offset = np.polyfit(x, y, 1)
            np.testing.assert_allclose(y, slope * x + offset, atol=1e-5)
            assert 0.4 < slope < 1.7 and abs(offset) <= 0.2001
    still = DepthObjective(objective.model, DepthSettings(flip=0.0, smaller=0.0))
    assert torch.equal(still.augment(pixels, place, valid, draw())[0], pixels)


def test_shadow_darkens_and_mean_background_has_nearby_colour() -> None:
    objective, _ = make("depth")
    assert isinstance(objective, DepthObjective)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dark = DepthObjective(objective.model, DepthSettings(shadows=0.6)).shade(pixels, draw())
    light = (dark + 1) / (pixels + 1)
    assert light.max() <= 1.0001 and light.min() > 0.4**2 - 1e-4 and light.std(dim=(1, 2, 3)).min() > 0.01
    torch.testing.assert_close(light[:, 0], light[:, 2], atol=2e-3, rtol=2e-3)
    assert torch.equal(objective.shade(pixels, draw()), pixels)

    seen: list[torch.Tensor] = []
    alone = LiteDepth(dataclasses.replace(objective.model.config, background="mean"))
    alone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    still = DepthObjective(alone, DepthSettings(flip=0.0, smaller=0.0))
    valid = torch.zeros(4, 32, 32, dtype=torch.bool)
    valid[:, 8:24, 8:24] = True
    points = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    still({"pixels": pixels, "points": points, "valid": valid, "draw": draw()})
    torch.testing.assert_close(seen[0][:, :, 8:24, 8:24], pixels[:, :, 8:24, 8:24])
    mean = pixels[:, :, 8:24, 8:24].mean(dim=(2, 3))
    torch.testing.assert_close(seen[0][:, :, 0, 0], mean)
    torch.testing.assert_close(seen[0][:, :, 31, 16], mean)
