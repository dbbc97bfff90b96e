from __future__ import annotations

import torch
from torch import Generator, Tensor

from starters.data.images import flag_augmentation

SIDE = 32


def artwork(count: int) -> Tensor:
    """Draw flags with a red left and a blue right half."""
    flag = torch.zeros(4, SIDE, SIDE, dtype=torch.uint8)
    flag[3] = 255
    flag[0, :, : SIDE // 2] = 220
    flag[2, :, SIDE // 2 :] = 220
    return flag.expand(count, -1, -1, -1)


def render(count: int, seed: int, clean: float) -> Tensor:
    return flag_augmentation.render(artwork(count), SIDE, Generator().manual_seed(seed), clean)


def test_pictures_are_a_function_of_the_seed() -> None:
    assert torch.equal(render(20, 1, 0.4), render(20, 1, 0.4))
    assert not torch.equal(render(20, 1, 0.4), render(20, 2, 0.4))


def test_no_two_pictures_of_a_batch_are_alike() -> None:
    pictures = render(40, 3, 0.4).flatten(1)
    assert pictures.shape == (40, 3 * SIDE * SIDE)
    assert len(torch.unique(pictures, dim=0)) == 40


def test_flags_are_never_mirrored() -> None:
    pictures = render(200, 4, 1.0).float()
    redness = pictures[:, 0] - pictures[:, 2]
    middle = slice(SIDE * 3 // 8, SIDE * 5 // 8)
    left, right = (redness[:, middle, columns].mean(dim=(1, 2)) for columns in (slice(6, 14), slice(18, 26)))
    assert (left > right).all()


def test_clean_images_are_nearer_to_drawing_than_distorted_ones() -> None:
    flat = artwork(200)[:, :3].float()
    far = {clean: (render(200, 5, clean).float() - flat).abs().mean() for clean in (0.0, 1.0)}
    assert far[1.0] < far[0.0]


def test_the_artworks_own_transparency_shows_the_background() -> None:
    hole = artwork(64).clone()
    hole[:, 3] = 0
    pictures = flag_augmentation.render(hole, SIDE, Generator().manual_seed(6), 1.0)
    coloured = ((pictures[:, 0].int() - pictures[:, 2].int()).abs() > 100).float().mean(dim=(1, 2)) > 0.9
    white = (pictures.amin(dim=1) > 200).float().mean(dim=(1, 2)) > 0.5
    assert white.float().mean() > 0.4
    assert coloured.float().mean() < 0.3
