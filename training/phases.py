"""The phases of a recipe: masked pre-training and fine-tuning, from it or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.mae.model import MAE, MAEConfig, start_from_pretrained
from models.merge_schedule import MergeSchedule
from models.vit.model import Pool, ViT, ViTConfig
from training.data.augmented import DistortedFlags
from training.data.flags import Corpus
from training.loop import Run, train
from training.objectives.mae import MaskedReconstruction
from training.objectives.supervised import Supervised
from training.optim import layer_decay_groups, pretraining_groups
from training.recipe import Phase, Recipe


def vit_config(recipe: Recipe) -> ViTConfig:
    shape = recipe.model
    return ViTConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        classes=len(recipe.data.labels),
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
    groups = pretraining_groups(model, recipe.pretrain.weight_decay)
    train(MaskedReconstruction(model), _data(recipe, corpus, recipe.pretrain), groups, recipe.pretrain, _run(recipe, folder))
    return model


def finetune(recipe: Recipe, corpus: Corpus, folder: Path, encoder: Mapping[str, Tensor], epochs: int | None = None) -> ViT:
    """encoder: an MAE's weights; those of `untrained(recipe)` are no pre-training. epochs: another number than the recipe's."""
    torch.manual_seed(recipe.seed)
    model = ViT(vit_config(recipe))
    plan = recipe.finetune.model_copy(update={"epochs": epochs or recipe.finetune.epochs})
    start_from_pretrained(model, encoder)
    groups = layer_decay_groups(model, layer_decay=plan.layer_decay, weight_decay=plan.weight_decay)
    schedules = [MergeSchedule.parse(schedule) for schedule in plan.merge]
    train(Supervised(model, schedules, plan.label_smoothing), _data(recipe, corpus, plan), groups, plan, _run(recipe, folder))
    return model


def _data(recipe: Recipe, corpus: Corpus, phase: Phase) -> DistortedFlags:
    return DistortedFlags(corpus.train, phase.renderings, recipe.preprocess, recipe.data.clean, recipe.seed)


def _run(recipe: Recipe, folder: Path) -> Run:
    return Run(folder, recipe.seed, recipe.precision, recipe.checkpoint_every, recipe.workers)
