from __future__ import annotations

import pytest
import torch

from models.mae.model import MAE, MAEConfig
from models.merge_schedule import MergeSchedule
from models.vit.model import Pool, ViT, ViTConfig
from training.objectives.mae import MaskedReconstruction
from training.objectives.supervised import Supervised


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(1)
    return ViT(ViTConfig(image_size=16, patch_size=4, classes=3, width=16, depth=2, heads=2, pool=Pool.MEAN))


def test_pretraining_minds_only_the_patches_that_were_hidden(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = MAE(MAEConfig(16, 4, 3, 16, 2, 2, 8, 1, 2, mask_ratio=0.75, normalise_targets=True))
    torch.manual_seed(7)
    noise = torch.rand(4, 16)
    answer = model(pixels, noise)

    errors = []
    for sample in range(4):
        hidden = noise[sample].argsort()[4:]  # a quarter of 16 patches is visible
        for patch in hidden.tolist():
            row, column = divmod(patch, 4)
            block = pixels[sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            wanted = (block - block.mean()) / (block.var() + 1e-6).sqrt()
            errors.append((answer.patches[sample, patch] - wanted).square().mean())
    torch.manual_seed(7)
    assert MaskedReconstruction(model)(pixels, torch.zeros(4)).item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_every_pretraining_step_hides_other_patches(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    objective = MaskedReconstruction(MAE(MAEConfig(16, 4, 3, 16, 2, 2, 8, 1, 2)))
    assert objective(pixels, torch.zeros(4)) != objective(pixels, torch.zeros(4))


def test_fine_tuning_is_smoothed_cross_entropy_under_the_drawn_schedule(pixels: torch.Tensor, vit: ViT) -> None:
    targets = torch.tensor([0, 1, 2, 0])
    schedule = MergeSchedule.constant(4)
    probabilities = vit(pixels, merge=schedule).logits.log_softmax(dim=1)
    wanted = -(0.9 * probabilities.gather(1, targets[:, None]).squeeze(1) + 0.1 * probabilities.mean(dim=1)).mean()
    got = Supervised(vit, [schedule], label_smoothing=0.1)(pixels, targets)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_every_schedule_of_the_ladder_gets_its_turn(pixels: torch.Tensor, vit: ViT) -> None:
    targets = torch.tensor([0, 1, 2, 0])
    schedules = [MergeSchedule.constant(r) for r in (0, 3, 6)]
    alone = {round(Supervised(vit, [schedule])(pixels, targets).item(), 6) for schedule in schedules}
    assert len(alone) == 3
    torch.manual_seed(0)
    objective = Supervised(vit, schedules)
    assert {round(objective(pixels, targets).item(), 6) for _ in range(40)} == alone


def test_merging_lets_every_parameter_learn(pixels: torch.Tensor, vit: ViT) -> None:
    Supervised(vit, [MergeSchedule.constant(5)])(pixels, torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vit.parameters())
