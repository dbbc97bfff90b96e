"""MAE pre-training beyond the recorded cases (tests/golden/mae)."""

from __future__ import annotations

import pytest
import torch

from models.layers.masked_encoder import Masking
from models.layers.patches import patchify, resize_table, sincos_table, unpatchify
from models.systems.mae.model import MAE, SIZES, MAEConfig, init_vit_from_mae
from models.systems.vit.model import Pool, ViT, ViTConfig

SMALL = MAEConfig(
    image_size=16, patch_size=4, width=32, depth=2, heads=4, decoder_width=16, decoder_depth=1, decoder_heads=2, normalise_targets=True
)


@pytest.fixture
def model() -> MAE:
    torch.manual_seed(0)
    return MAE(SMALL)


def test_a_constant_patch_is_a_target_of_zeros(model: MAE) -> None:
    """The 1e-6 under the root: no recorded patch has a variance small enough to show it."""
    assert torch.equal(model.targets(torch.full((1, 3, 16, 16), 0.5)), torch.zeros(1, 16, 48))


def test_a_nearly_constant_patch_is_damped_by_the_epsilon(model: MAE) -> None:
    pixels = 0.5 + 1e-3 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = patchify(pixels, 4).var(dim=-1)
    torch.testing.assert_close(model.targets(pixels).var(dim=-1), variance / (variance + 1e-6))


def test_only_removed_patches_count_for_the_loss(model: MAE) -> None:
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    answer = model(images, noise)
    error = (answer.patches - model.targets(images)).square().mean(dim=-1)
    torch.testing.assert_close(answer.loss, error[answer.mask == 1].mean())
    assert answer.mask.sum(dim=1).tolist() == [12, 12]


def test_the_visible_count_is_truncated_as_published() -> None:
    assert MAEConfig(mask_ratio=0.75).visible == 49
    assert MAEConfig(image_size=160, mask_ratio=0.9).visible == 9  # 100 · (1 - 0.9) is a hair below 10


@pytest.mark.parametrize(("size", "patches"), [("base_patch16", 196), ("large_patch16", 196), ("huge_patch14", 256)])
def test_published_sizes_have_decoder_heads_of_32_channels(size: str, patches: int) -> None:
    config = SIZES[f"mae_vit_{size}"]
    assert (config.patches, config.visible) == (patches, patches // 4)
    assert (config.decoder_width, config.decoder_depth, config.decoder_heads, config.norm_eps) == (512, 8, 16, 1e-6)


def test_masking_restores_raster_order() -> None:
    noise = torch.rand(3, 10)
    masking = Masking.from_noise(noise, 4)
    assert torch.equal(masking.mask.gather(1, masking.ids_keep), torch.zeros(3, 4))
    order = noise.argsort(dim=1)
    assert torch.equal(order.gather(1, masking.ids_restore), torch.arange(10).expand(3, -1))


def test_same_noise_gives_same_output_despite_global_generator(model: MAE) -> None:
    images, noise = torch.randn(1, 3, 16, 16), torch.rand(1, 16)
    first = model(images, noise).loss
    torch.manual_seed(99)
    assert torch.equal(model(images, noise).loss, first)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = MAE(MAEConfig(image_size=32, patch_size=8, width=256, depth=2, heads=4, decoder_width=128, decoder_depth=1, decoder_heads=4))
    limit = (6 / (3 * 64 + 256)) ** 0.5  # xavier-uniform on the (256, 3·8·8) view
    weight = model.patch_embed.proj.weight
    assert limit * 0.99 < weight.abs().max() <= limit
    linear = model.blocks[0].mlp.fc1
    limit = (6 / (256 + 1024)) ** 0.5
    assert limit * 0.99 < linear.weight.abs().max() <= limit
    assert not linear.bias.any()
    for token in (model.cls_token, model.mask_token):
        assert 0.015 < token.std() < 0.025
    assert torch.equal(model.blocks[0].norm1.weight, torch.ones(256))
    assert not model.pos_embed.requires_grad
    assert "pos_embed" in model.state_dict()


def test_the_position_table_puts_the_column_first() -> None:
    grid = sincos_table(8, 3)[0, 1:].view(3, 3, 8)
    assert torch.equal(grid[0, :, :4], grid[2, :, :4])  # the first half does not see the row
    assert torch.equal(grid[:, 0, 4:], grid[:, 2, 4:])
    assert not sincos_table(8, 3)[0, 0].any()


def test_patchify_is_undone() -> None:
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)
    assert torch.equal(patchify(images, 4)[:, 1, :3], images[:, :, 0, 4])  # second patch of the first row; the channel is the fastest


def test_fine_tuning_starts_from_the_encoder(model: MAE) -> None:
    config = ViTConfig(image_size=32, patch_size=4, classes=7, width=32, depth=2, heads=4, pool=Pool.MEAN)
    classifier = ViT(config)
    init_vit_from_mae(classifier, model.state_dict())
    assert torch.equal(classifier.blocks[1].mlp.fc2.weight, model.blocks[1].mlp.fc2.weight)
    torch.testing.assert_close(classifier.pos_embed, resize_table(model.pos_embed, 64, special=1))
    assert torch.equal(classifier.fc_norm.weight, torch.ones(32))
    assert 1e-5 < classifier.head.weight.std() < 3e-5
    assert classifier.pos_embed.requires_grad


def test_pictures_of_another_size_are_refused(model: MAE) -> None:
    with pytest.raises(ValueError, match=r"images: shape \(1, 3, 16, 20\); \(batch, 3, 16, 16\) is needed"):
        model(torch.zeros(1, 3, 16, 20), torch.rand(1, 16))


def test_weights_that_do_not_fit_are_named(model: MAE) -> None:
    deeper = ViT(ViTConfig(image_size=16, patch_size=4, width=32, depth=3, heads=4, pool=Pool.MEAN))
    with pytest.raises(ValueError, match=r"lack blocks\.2\.norm1\.weight"):
        init_vit_from_mae(deeper, model.state_dict())
    wider = ViT(ViTConfig(image_size=16, patch_size=4, width=64, depth=2, heads=4, pool=Pool.MEAN))
    with pytest.raises(ValueError, match=r"another shape: cls_token"):
        init_vit_from_mae(wider, model.state_dict())
