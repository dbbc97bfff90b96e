"""Mixup and CutMix: what comes of two neighbours, and how strengths are spread."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from timm.data.mixup import mixup_target
from torch import Tensor

from training.objectives.supervised import MixupCutMix, cut_box

PIXELS = torch.randn(6, 3, 12, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(6)


def mix(mixing: MixupCutMix, step: int, pixels: Tensor = PIXELS) -> tuple[Tensor, Tensor]:
    return mixing.mix(pixels, TARGETS[: len(pixels)], torch.arange(len(pixels)) + 1000 * step)


def shares(mixing: MixupCutMix, steps: int) -> list[float]:
    """Return the first sample's share in its target."""
    return [float(mix(mixing, step)[1][0, 0]) for step in range(steps)]


def test_mixup_blends_neighbours_by_the_share_in_their_targets() -> None:
    pixels, targets = mix(MixupCutMix(mixup=0.8), 3)
    share = float(targets[0, 0])
    assert 0 < share < 1
    for sample in range(6):
        other = sample + 1 if sample % 2 == 0 else sample - 1
        torch.testing.assert_close(pixels[sample], share * PIXELS[sample] + (1 - share) * PIXELS[other])
        assert targets[sample].nonzero().flatten().tolist() == sorted((sample, other))
        assert float(targets[sample, other]) == pytest.approx(1 - share)


def test_cutmix_pastes_neighbour_box_and_share_is_its_area() -> None:
    for step in range(20):
        pixels, targets = mix(MixupCutMix(cutmix=1.0), step)
        foreign = (pixels != PIXELS).any(dim=1)  # (B, H, W)
        assert torch.equal(foreign, foreign[:1].expand_as(foreign))
        rows, columns = foreign[0].any(dim=1).sum(), foreign[0].any(dim=0).sum()
        assert foreign[0].sum() == rows * columns  # a rectangle
        assert float(targets[0, 1]) == pytest.approx(float(foreign[0].float().mean()), abs=1e-6)
        swapped = PIXELS.view(3, 2, 3, 12, 8).flip(1).reshape_as(PIXELS)
        assert torch.equal(pixels, torch.where(foreign.unsqueeze(1), swapped, PIXELS))


def test_all_frames_of_a_clip_are_cut_alike() -> None:
    clip = PIXELS.unsqueeze(2) + torch.arange(4.0).view(1, 1, 4, 1, 1)
    pixels, _ = mix(MixupCutMix(cutmix=1.0), 1, clip)
    torch.testing.assert_close(
        pixels - torch.arange(4.0).view(1, 1, 4, 1, 1), mix(MixupCutMix(cutmix=1.0), 1)[0].unsqueeze(2).expand_as(clip)
    )


def test_the_last_of_an_odd_batch_stays() -> None:
    pixels, targets = mix(MixupCutMix(mixup=0.8), 2, PIXELS[:5])
    torch.testing.assert_close(pixels[4], PIXELS[4])
    torch.testing.assert_close(targets[4], TARGETS[4])


@pytest.mark.parametrize("alpha", [0.8, 1.0, 4.0])
def test_shares_follow_a_beta_distribution(alpha: float) -> None:
    assert stats.kstest(shares(MixupCutMix(mixup=alpha), 500), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_batch_is_mixed_by_probability_and_cut_by_cutmixs() -> None:
    untouched = [torch.equal(mix(MixupCutMix(mixup=0.8, probability=0.3), step)[0], PIXELS) for step in range(600)]
    assert sum(untouched) / 600 == pytest.approx(0.7, abs=0.06)
    both = MixupCutMix(mixup=0.8, cutmix=1.0, cutmix_probability=0.25)
    kept_pixels = [bool((mix(both, step)[0] == PIXELS).any()) for step in range(600)]  # a blend leaves no pixel as it is
    assert sum(kept_pixels) / 600 == pytest.approx(0.25, abs=0.06)
    assert not MixupCutMix().active and MixupCutMix(cutmix=1.0).active


def test_boxes_are_those_of_the_published_augmentation() -> None:
    """timm's: a box of the image's shape around its centre, cut at the borders."""
    box = cut_box(100, 50, share=0.75, row=0.5, column=0.1)
    assert (box.top, box.bottom, box.left, box.right) == (25, 75, 0, 17)
    assert box.area == 50 * 17


def test_targets_are_timms_where_the_partner_is_the_same() -> None:
    """If there are two samples, timm's partner, the batch in reverse, is the neighbour."""
    smoothed = torch.eye(3)[[2, 0]] * 0.9 + 0.1 / 3
    _, targets = MixupCutMix(mixup=0.8).mix(PIXELS[:2], smoothed, torch.tensor([5, 6]))
    share = float((targets[0, 2] - 0.1 / 3) / 0.9)
    torch.testing.assert_close(targets, mixup_target(torch.tensor([2, 0]), 3, share, 0.1))
