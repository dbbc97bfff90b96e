"""DiffMAE's loss, patch by patch; its weights by time; its second target."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from models import bundle
from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from models.layers.masked_encoder import gather_tokens
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig, PredictionTarget
from models.systems.image_text.flip import FLIP
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.training.objectives.cases import DIFFMAE_CONFIG, FLIP_CONFIG, assert_same_gradients, draw, gradients, normal
from training import random_draws
from training.objectives import masks
from training.objectives.diffmae import DiffMAEObjective, DiffMAESettings
from training.objectives.protocols import ObjectiveContext

PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
MIXED = {"masks": {"random": 1, "block": 1, "boxes": 1, "strokes": 1}}


def make(settings: dict[str, object], config: DiffMAEConfig = DIFFMAE_CONFIG) -> DiffMAEObjective:
    torch.manual_seed(0)
    return DiffMAEObjective(DiffMAE(config), DiffMAESettings.model_validate(settings))


def written_out(objective: DiffMAEObjective, pixels: Tensor) -> Tensor:
    """Compute the loss sample by sample, each alone and unpadded, patch by patch."""
    model, settings = objective.model, objective.settings
    config = model.config
    alphas_bar = config.schedule.alphas_bar()
    total, count = torch.zeros(()), 0
    for sample, number in enumerate(draw()):
        ours, image = number[None], pixels[sample : sample + 1]
        split = masks.split(ours, config.grid, settings.masks, settings.mask_ratio)
        t = random_draws.integers(ours, (), 0, config.schedule.steps, "time")
        noise = gather_tokens(random_draws.normal(ours, (config.patches, config.patch_values), "noise"), split.masked)
        level = float(alphas_bar[int(t)])
        clean = gather_tokens(model.patchify(image), split.masked)
        predicted = model.predict(level**0.5 * clean + (1 - level) ** 0.5 * noise, t, model.encode(image, split)).patches
        for patch in range(split.masked.shape[1]):
            expected = clean[0, patch] if config.target is PredictionTarget.X0 else noise[0, patch]
            total = total + (predicted[0, patch] - expected).square().mean()
            count += 1
    return total / count


@pytest.mark.parametrize("target", list(PredictionTarget))
@pytest.mark.parametrize("settings", [{}, MIXED, {**MIXED, "parts": 3}, {**MIXED, "parts": 99}])
def test_the_loss_is_the_mean_over_all_masked_patches(settings: dict[str, object], target: PredictionTarget) -> None:
    objective, pixels = make(settings, replace(DIFFMAE_CONFIG, target=target)), normal(3, 16, 16)
    loss = objective({"pixels": pixels, "draw": draw()})["loss"]
    expected = written_out(objective, pixels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective), 2e-5)


def test_times_are_uniform() -> None:
    t = random_draws.integers(torch.arange(3000), (), 0, 1000, "time")
    assert t.min() < 5 and t.max() > 994 and t.float().mean().item() == pytest.approx(499.5, abs=20)


def test_second_head_learns_direction_of_teacher_patches() -> None:
    torch.manual_seed(0)
    teacher, config = FLIP(FLIP_CONFIG), replace(DIFFMAE_CONFIG, clip_width=16, clip_weight=0.5)
    objective, pixels = DiffMAEObjective(DiffMAE(config), DiffMAESettings(), teacher), normal(3, 16, 16)
    values = objective({"pixels": pixels, "draw": draw()})
    split = masks.split(draw(), config.grid, objective.settings.masks, 0.75)
    t = random_draws.integers(draw(), (), 0, 1000, "time")
    noise = gather_tokens(random_draws.normal(draw(), (16, 48), "noise"), split.masked)
    model = objective.model
    noisy = config.schedule.add_noise(model.targets(pixels, split), t, noise)
    predicted = model.predict(noisy, t, model.encode(pixels, split)).clip
    assert predicted is not None
    features = teacher.vision.encode_patches(pixels)
    distances = []
    for sample in range(4):
        for number, patch in enumerate(split.masked[sample].tolist()):
            a, b = predicted[sample, number], features[sample, patch]
            distances.append(2 - 2 * (a @ b) / (a.norm() * b.norm()))
    expected = torch.stack(distances).mean()
    assert values["loss_clip"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["loss"].item() == pytest.approx((values["loss_pixel"] + 0.5 * expected).item(), rel=1e-5)
    alone = DiffMAEObjective(model, DiffMAESettings(pixel_weight=0.0), teacher)({"pixels": pixels, "draw": draw()})
    assert alone["loss"].item() == pytest.approx((0.5 * expected).item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.vision.parameters())
    assert not objective.train().teacher.training  # type: ignore[union-attr]


def test_a_teacher_is_read_from_a_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(image_size=16, patch_size=4, classes=2, width=16, depth=1, heads=2, pool=Pool.TOKEN))
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    spec = BundleSpec(
        name="teacher",
        version="1",
        task="classify",
        architecture="vit",
        config=asdict(vit.config),
        preprocess=PREPROCESS,
        labels=["a", "b"],
        license="none",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    path = bundle.write(tmp_path / "bundles", spec, tmp_path / "weights.safetensors").path
    settings = DiffMAESettings(teacher=path)
    objective = settings.build(DiffMAE(replace(DIFFMAE_CONFIG, clip_width=16)), ObjectiveContext())
    pixels = normal(3, 16, 16)
    assert objective.teacher is not None
    torch.testing.assert_close(objective.teacher.encode_patches(pixels), vit.encode_patches(pixels))
    with pytest.raises(ValueError, match=r"teacher: its patches have 16 channels, and model.clip_width is 8"):
        settings.build(DiffMAE(replace(DIFFMAE_CONFIG, clip_width=8)), ObjectiveContext())
    with pytest.raises(ValueError, match="teacher: it sees"):
        settings.build(DiffMAE(replace(DIFFMAE_CONFIG, clip_width=16, image_size=(32, 32))), ObjectiveContext())
    with pytest.raises(ValueError, match=r"teacher: .*cannot be read"):
        DiffMAESettings(teacher=tmp_path / "nowhere").build(DiffMAE(DIFFMAE_CONFIG), ObjectiveContext())


def test_a_second_head_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher"):
        DiffMAESettings().build(DiffMAE(replace(DIFFMAE_CONFIG, clip_width=16)), ObjectiveContext())


@pytest.mark.parametrize("odds", [{}, {"random": -1.0, "boxes": 2.0}, {"random": 0.0}, {"circles": 1.0}])
def test_odds_that_make_no_sense_are_refused(odds: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="masks"):
        DiffMAESettings.model_validate({"masks": odds})


def test_pictures_fill_the_masked_patches_and_leave_the_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = DiffMAESettings.model_validate(MIXED)
    objective = DiffMAEObjective(DiffMAE(DIFFMAE_CONFIG), settings, context=ObjectiveContext(preprocess=PREPROCESS))
    visible = objective.pictures({"pixels": normal(3, 16, 16), "draw": draw()})
    hidden = torch.zeros(4, 16, dtype=torch.bool)
    split = masks.split(draw(), (1, 4, 4), settings.masks, 0.75)
    assert split.masked_size is not None
    for sample in range(4):
        hidden[sample, split.masked[sample, : int(split.masked_size[sample].sum())]] = True
    hidden = hidden.view(4, 4, 4).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    grey = torch.tensor(PREPROCESS.mean).mul(255).round().to(torch.uint8)
    assert (visible["masked"][hidden] == grey).all()
    assert torch.equal(visible["masked"][~hidden], visible["predicted"][~hidden])
    assert not torch.equal(visible["masked"][hidden], visible["predicted"][hidden])
