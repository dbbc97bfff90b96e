"""Starting values by which a DiffMAE looks at neighbouring patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.systems.diffmae.init_attention import content_channels, cosine_basis, init_neighbour_attention
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig

CONFIG = DiffMAEConfig(
    image_size=(48, 48), patch_size=4, width=128, depth=1, heads=4, decoder_width=128, decoder_depth=2, decoder_heads=4, time_width=8
)
ROWS = COLUMNS = 12
HIDDEN = 5 * COLUMNS + 5
"""One patch in the middle."""


def build(*, looks_around: bool = True) -> DiffMAE:
    torch.manual_seed(0)
    model = DiffMAE(CONFIG).eval()
    if looks_around:
        init_neighbour_attention(model)
        nn.init.xavier_uniform_(model.decoder_pred.weight)  # it starts at zero, and nothing would be seen
    return model


def influence(model: DiffMAE, patch: int) -> float:
    """Change of the hidden patch's prediction from pure noise, when a visible patch turns from white to grey."""
    mask = torch.zeros(1, 1, ROWS, COLUMNS, dtype=torch.bool).flatten(1)
    mask[0, HIDDEN] = True
    split = PatchSplit.from_mask(mask.view(1, 1, ROWS, COLUMNS))
    noise = torch.randn(1, 1, CONFIG.patch_values, generator=torch.Generator().manual_seed(1))

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model.predict(noise, torch.tensor([999]), model.encode(images, split)).patches

    white = torch.full((1, 3, 48, 48), 2.0)
    changed = white.clone()
    row, column = divmod(patch, COLUMNS)
    changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.0
    return float((predict(changed) - predict(white)).norm())


@pytest.mark.parametrize("step", [-1, 1, -COLUMNS, COLUMNS], ids=["left", "right", "above", "below"])
def test_neighbours_of_a_hole_weigh_more_than_distant_patches(step: int) -> None:
    attentive, random = build(), build(looks_around=False)
    assert influence(attentive, HIDDEN + step) > 2 * influence(attentive, HIDDEN + 5 * step)
    assert influence(random, HIDDEN + step) < 1.5 * influence(random, HIDDEN + 5 * step)


def test_patches_and_noise_share_an_orthonormal_basis() -> None:
    basis = cosine_basis(4, 3).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(48), atol=1e-6, rtol=0)
    model, images = build(), torch.randn(2, 3, 48, 48)
    embedded = model.patch_embed(images) - model.patch_embed(torch.zeros_like(images))
    torch.testing.assert_close(model.noise_embed(model.patchify(images)), embedded, atol=1e-5, rtol=0)


def test_no_branch_disturbs_what_positions_are_read_from() -> None:
    model, images = build(), torch.randn(1, 3, 48, 48)
    split = PatchSplit.from_noise(torch.rand(1, CONFIG.patches), 0.5)
    read = torch.ones(CONFIG.width, dtype=torch.bool)
    read[content_channels(CONFIG.width)] = False
    after: list[Tensor] = []
    model.decoder_norm.register_forward_pre_hook(lambda _, inputs: after.append(inputs[0]))
    with torch.no_grad():
        model(images, split, torch.tensor([500]), torch.randn(1, split.masked.shape[1], CONFIG.patch_values))
    expected = model.decoder_pos_embed[0, 1 + split.masked]
    torch.testing.assert_close(after[0][..., read], expected[..., read], atol=1e-6, rtol=0)
    assert (after[0] - expected)[..., ~read].abs().mean() > 0.1


def test_the_first_prediction_is_zero() -> None:
    torch.manual_seed(0)
    model = DiffMAE(CONFIG)
    init_neighbour_attention(model)
    split = PatchSplit.from_noise(torch.rand(1, CONFIG.patches), 0.5)
    answer = model(torch.randn(1, 3, 48, 48), split, torch.tensor([10]), torch.randn(1, split.masked.shape[1], CONFIG.patch_values))
    assert not answer.prediction.patches.any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, decoder_width=64), "decoder_width: 64 is not the encoder's width, 128"),
        (replace(CONFIG, frames=4, patch_frames=2), "frames: only networks of images"),
    ],
    ids=["widths", "clips"],
)
def test_networks_whose_positions_do_not_match_are_refused(config: DiffMAEConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init_neighbour_attention(DiffMAE(config))
