"""The phases of a recipe: masked pre-training, fine-tuning from it, and the same fine-tuning from scratch for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.mae.model import MAE, MAEConfig, start_from_pretrained
from models.merge_schedule import MergeSchedule
from models.vit.model import Pool, ViT, ViTConfig
from training.data.augmented import AugmentedPictures
from training.data.corpus import Corpus
from training.loop import Run, train
from training.objectives.mae import MaskedReconstruction
from training.objectives.supervised import Supervised
from training.optim import layer_decay_groups, pretraining_groups
from training.recipe import Recipe


def vit_config(recipe: Recipe) -> ViTConfig:
    shape = recipe.model
    return ViTConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        classes=len(recipe.data.categories),
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        pool=Pool.MEAN,
        drop_path=recipe.finetune.drop_path,
    )


def untrained(recipe: Recipe) -> MAE:
    torch.manual_seed(recipe.seed)
    return MAE(MAEConfig(**recipe.model.model_dump(), mask_ratio=recipe.pretrain.mask_ratio, normalise_targets=True))


def pretrain(recipe: Recipe, corpus: Corpus, folder: Path) -> MAE:
    model = untrained(recipe)
    pictures = corpus.pixels(corpus.assignment.pretrain)
    data = AugmentedPictures(pictures, None, recipe.pretrain.augmentation, recipe.preprocess, recipe.seed)
    groups = pretraining_groups(model, recipe.pretrain.weight_decay)
    train(MaskedReconstruction(model), data, groups, recipe.pretrain, _run(recipe, folder))
    return model


def finetune(recipe: Recipe, corpus: Corpus, folder: Path, encoder: Mapping[str, Tensor]) -> ViT:
    """encoder: an MAE's weights. Those of `untrained(recipe)` make the baseline: all is the same but the pre-training."""
    torch.manual_seed(recipe.seed)
    model, plan = ViT(vit_config(recipe)), recipe.finetune
    start_from_pretrained(model, encoder)
    labelled = corpus.assignment.train
    data = AugmentedPictures(corpus.pixels(labelled.pictures), labelled.targets, plan.augmentation, recipe.preprocess, recipe.seed)
    groups = layer_decay_groups(model, layer_decay=plan.layer_decay, weight_decay=plan.weight_decay)
    schedules = [MergeSchedule.parse(schedule) for schedule in plan.merge]
    train(Supervised(model, schedules, plan.label_smoothing), data, groups, plan, _run(recipe, folder))
    return model


def _run(recipe: Recipe, folder: Path) -> Run:
    return Run(folder, recipe.seed, recipe.precision, recipe.checkpoint_every)
