"""Starting values by which a decoder weighs what it sees by the time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.systems.diffmae.init_attention import ContentChannels, init_neighbour_attention
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig

CONFIG = DiffMAEConfig(
    image_size=(48, 48), patch_size=8, width=224, depth=1, heads=4, mlp_ratio=2, decoder_width=224, decoder_depth=2, decoder_heads=4
)


@pytest.fixture
def model() -> DiffMAE:
    torch.manual_seed(0)
    model = DiffMAE(CONFIG)
    init_neighbour_attention(model)
    return model.eval()


def before_the_last_layer(model: DiffMAE, x: Tensor, t: int, images: Tensor) -> Tensor:
    """Return the tokens of the first image's masked patches: (M, C)."""
    seen: list[Tensor] = []
    hook = model.decoder_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    split = PatchSplit.from_noise(torch.linspace(0, 1, CONFIG.patches).unsqueeze(0), 0.5)
    with torch.no_grad():
        model.predict(x, torch.tensor([t]), model.encode(images, split))
    hook.remove()
    return seen[0][0]


def test_gate_keeps_clear_patch_and_forgets_it_in_noise(model: DiffMAE) -> None:
    channels = ContentChannels.from_width(CONFIG.width, CONFIG.patch_values)
    x, images = torch.randn(1, CONFIG.patches // 2, CONFIG.patch_values), torch.zeros(1, 3, 48, 48)
    embedded = model.noise_embed(x)[0, :, channels.patch].detach()
    place = model.decoder_pos_embed[0, 1 + PatchSplit.from_noise(torch.linspace(0, 1, CONFIG.patches).unsqueeze(0), 0.5).masked[0]][
        :, channels.patch
    ]
    retained = [before_the_last_layer(model, x, t, images)[:, channels.patch] - place for t in (0, 200, 999)]
    left = [float((part * embedded).sum() / embedded.square().sum()) for part in retained]
    assert left[0] == pytest.approx(1, abs=0.2)
    assert left[2] == pytest.approx(0, abs=0.2)
    assert left[0] > left[1] > left[2]


def test_the_mean_of_a_patch_outlives_its_details(model: DiffMAE) -> None:
    channels = ContentChannels.from_width(CONFIG.width, CONFIG.patch_values)
    images = torch.zeros(1, 3, 48, 48)
    blank = before_the_last_layer(model, torch.zeros(1, CONFIG.patches // 2, CONFIG.patch_values), 200, images)
    left = []
    for number in (0, 100):  # of the basis: the mean of red, and waves
        change = 0.1 * model.noise_embed.weight[channels.patch[number]] / model.noise_embed.weight[channels.patch[number]].norm()
        x = change.expand(1, CONFIG.patches // 2, -1)
        moved = before_the_last_layer(model, x, 200, images) - blank
        left.append(float(moved[:, channels.patch[number]].mean() / model.noise_embed(x)[0, 0, channels.patch[number]]))
    assert left[0] > left[1] + 0.3


def test_clear_patches_ignore_what_others_attended_to(model: DiffMAE) -> None:
    channels = ContentChannels.from_width(CONFIG.width, CONFIG.patch_values)
    x = torch.zeros(1, CONFIG.patches // 2, CONFIG.patch_values)
    torch.manual_seed(1)
    one, other = torch.rand(2, 1, 3, 48, 48)
    answer = [
        float((before_the_last_layer(model, x, t, one) - before_the_last_layer(model, x, t, other))[:, channels.found].square().mean())
        for t in (0, 999)
    ]
    assert answer[0] < 0.1 * answer[1]


def test_a_narrow_network_is_refused() -> None:
    with pytest.raises(ValueError, match="width: 4 has room for positions only"):
        ContentChannels.from_width(4, CONFIG.patch_values)
