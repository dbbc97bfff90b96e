"""Proxies: what the losses are, which parameters learn how fast, and how a network begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.efficientnet_lite import LitePatches
from models.systems.image_text.flip import FLIP
from tests.training.objectives.cases import FLIP_CONFIG, make
from training.objectives.protocols import ObjectiveContext
from training.objectives.proxy_nca import ProxiesSettings, ProxyObjective, fit_proxies, skip_blocks
from training.recipe_settings import OptimiserSettings


def objective(things: int = 3, **settings: float) -> ProxyObjective:
    torch.manual_seed(0)
    return ProxiesSettings.model_validate(settings).build(FLIP(FLIP_CONFIG), ObjectiveContext(labels=("",) * things))


def test_images_and_texts_are_named_among_all_things() -> None:
    proxies = objective(label_smoothing=0.0, contrast=0.0)
    seen, read = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(4, 2, 8), dim=2)
    label = torch.tensor([2, 0, 1, 2])
    scale, towards = proxies.model.scale(), F.normalize(proxies.proxies, dim=1)

    def label_loss(vectors: Tensor) -> Tensor:
        return -(scale * vectors @ towards.T).log_softmax(dim=1)[torch.arange(4), label].mean()

    losses = proxies.losses(seen, read, label)
    assert torch.allclose(losses["images"], label_loss(seen), atol=1e-6)
    assert torch.allclose(losses["texts"], (label_loss(read[:, 0]) + label_loss(read[:, 1])) / 2, atol=1e-6)
    assert torch.allclose(losses["loss"], losses["images"] + losses["texts"], atol=1e-6)
    pairs = proxies.pairs.compare(seen, read)["loss"]
    with_pairs = objective(label_smoothing=0.0, contrast=0.5).losses(seen, read, label)
    assert torch.allclose(with_pairs["loss"], losses["loss"] + 0.5 * pairs, atol=1e-6)


def test_stem_learns_at_own_rate_behind_frozen_stages() -> None:
    case, batch = make("proxies")
    assert isinstance(case, ProxyObjective)
    groups = case.parameter_groups(OptimiserSettings(lr=0.001, weight_decay=0.1))
    stem = {name: group for group in groups for name in group["names"] if ".encoder." in name}
    assert stem and all(name.startswith("vision.patch_embed.encoder.stages.4.") for name in stem)
    assert {(group["lr_scale"], group["weight_decay"]) for group in stem.values()} == {(0.3, 0.0)}
    [proxies] = [group for group in groups if "proxies" in group["names"]]
    assert (proxies["lr_scale"], proxies["weight_decay"]) == (1.0, 0.1)
    case(batch)["loss"].backward()
    patches = case.model.vision.patch_embed
    assert isinstance(patches, LitePatches)
    assert patches.encoder.stem.weight.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in patches.encoder.stages[4].parameters())


@torch.no_grad()
def find_named(proxies: ProxyObjective, pixels: Tensor, label: Tensor) -> float:
    """Share of the images that are nearest to the middle of their thing."""
    seen = proxies.model.encode_images(pixels)
    middles = torch.stack([seen[label == thing].mean(dim=0) for thing in range(3)])
    return float(((seen @ F.normalize(middles, dim=1).T).argmax(dim=1) == label).float().mean())


def test_a_whitened_network_names_by_what_its_patches_are() -> None:
    """Things that differ in one weak direction next to a strong one without meaning are separated before the first step."""
    proxies = objective()
    skip_blocks(proxies.model)
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(96) % 3
    sign = torch.tensor([1.0, -1.0, 0.0])[label].view(-1, 1, 1, 1)
    checks = (torch.arange(16).view(-1, 1) + torch.arange(16)).fmod(2) * 2 - 1
    shade = torch.randn(96, 1, 1, 1, generator=generator) * 3
    pixels = (0.3 * sign * checks + shade + 0.02 * torch.randn(96, 1, 16, 16, generator=generator)).expand(-1, 3, -1, -1)
    batches = [{"pixels": pixels[at : at + 32], "label": label[at : at + 32]} for at in range(0, 96, 32)]
    assert find_named(proxies, pixels, label) <= 0.6
    fit_proxies(proxies, batches, whitened=True)
    with torch.no_grad():
        patches = proxies.model.vision.patch_embed(pixels[:32])
    assert torch.allclose(patches.mean(dim=(0, 1)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(patches.std(dim=(0, 1)), torch.ones(16), atol=1e-4)
    assert torch.allclose(proxies.proxies.norm(dim=1), torch.ones(3), atol=1e-5)
    assert find_named(proxies, pixels, label) >= 0.8


def test_things_that_were_not_met_keep_their_proxies() -> None:
    proxies = objective(things=4)
    before, network = proxies.proxies.detach().clone(), {name: value.clone() for name, value in proxies.model.state_dict().items()}
    batch = {"pixels": torch.randn(20, 3, 16, 16), "label": torch.arange(20) % 3}
    fit_proxies(proxies, [batch], whitened=False)
    assert torch.equal(proxies.proxies[3], before[3])
    with torch.no_grad():
        first = proxies.model.encode_images(batch["pixels"][::3]).sum(dim=0)
    assert torch.allclose(proxies.proxies[0], F.normalize(first, dim=0), atol=1e-5)
    assert all(torch.equal(value, network[name]) for name, value in proxies.model.state_dict().items())


def test_data_without_things_is_refused() -> None:
    with pytest.raises(ValueError, match="proxies: the data does not say which thing a sample is"):
        ProxiesSettings().build(FLIP(replace(FLIP_CONFIG)), ObjectiveContext())
