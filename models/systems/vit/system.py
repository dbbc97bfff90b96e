"""ViT, DeiT, SWAG and ToMe. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.registry import Architecture, Native, Purpose, SizeTable, System


def pools(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A model without a mean of its own gets that of its normalised patches; one with a mean may lack a class token."""
    if config.get("pool", "token") in ("token", "token-mean"):
        return ("cls", "mean")
    return ("mean", "cls") if config.get("class_token", True) else ("mean",)


SYSTEM = System(
    architectures=(
        Architecture(
            name="vit",
            model="models.systems.vit.model:ViT",
            purpose=Purpose(
                task=lambda config: "classify" if config.classes else "embed",
                size=lambda config: config.image_shape,
                classes=lambda config: int(config.classes),
            ),
            native=Native("image", lambda config: int(config.patches + config.special_tokens), "models.layers.native:images"),
            forwards={"classify": "models.systems.vit.forward:classify", "embed": "models.systems.vit.forward:embed"},
            precise_tasks=frozenset({"embed"}),
            pools=pools,
            token_vectors=lambda config: True,
            graph="models.systems.vit.graph:classifier_graph",
        ),
    ),
    sizes=(SizeTable("ViT", "vit", "arXiv 2010.11929", "models.systems.vit.model:SIZES"),),
    families={
        "timm": "models.systems.vit.published:TIMM",
        "deit": "models.systems.vit.published:DEIT",
        "mae": "models.systems.vit.published:MAE",
        "swag": "models.systems.vit.published:SWAG",
        "torchvision": "models.systems.vit.published:TORCHVISION",
    },
    timm_networks="models.systems.vit.published_timm:family_of",
    hub_classes={
        "ViTForImageClassification": "models.systems.vit.published_transformers:VIT",
        "ViTModel": "models.systems.vit.published_transformers:VIT",
        "DeiTForImageClassification": "models.systems.vit.published_transformers:DEIT",
        "DeiTForImageClassificationWithTeacher": "models.systems.vit.published_transformers:DEIT_TEACHER",
        "ViTMAEModel": "models.systems.vit.published_transformers:MAE_ENCODER",
        "Dinov2Model": "models.systems.vit.published_transformers:DINOV2_FAMILY",
        "Dinov2ForImageClassification": "models.systems.vit.published_transformers:DINOV2_CLASSIFIER",
    },
)
