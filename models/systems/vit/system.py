"""ViT, DeiT, SWAG and ToMe. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System


def pools(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the pools of a model. One without a mean gets that of its normalised patches; one with a mean may lack a class token."""
    if config.get("pool", "token") in ("token", "token-mean"):
        return ("cls", "mean")
    return ("mean", "cls") if config.get("class_token", True) else ("mean",)


SYSTEM = System(
    architectures=(
        Architecture(
            name="vit",
            model="models.systems.vit.model:ViT",
            bundle_defaults=BundleDefaults(
                task=lambda config: "classify" if config.classes else "embed",
                size=lambda config: config.image_shape,
                classes=lambda config: int(config.classes),
            ),
            dummy_forward=DummyForward("image", lambda config: int(config.patches + config.special_tokens), "models.layers.forward:images"),
            forwards={"classify": "models.systems.vit.model:classify", "embed": "models.systems.vit.model:embed"},
            precise_tasks=frozenset({"embed"}),
            pools=pools,
            token_vectors=lambda config: True,
            graph="models.systems.vit.onnx_graph:classifier_graph",
        ),
    ),
    sizes=(SizeTable("ViT", "vit", "arXiv 2010.11929", "models.systems.vit.model:SIZES"),),
    families={
        "timm": "models.systems.vit.checkpoint:TIMM",
        "deit": "models.systems.vit.checkpoint:DEIT",
        "mae": "models.systems.vit.checkpoint:MAE",
        "swag": "models.systems.vit.checkpoint:SWAG",
        "torchvision": "models.systems.vit.checkpoint:TORCHVISION",
    },
    timm_networks="models.systems.vit.checkpoint_timm:find_family",
    hub_classes={
        "ViTForImageClassification": "models.systems.vit.checkpoint_transformers:VIT",
        "ViTModel": "models.systems.vit.checkpoint_transformers:VIT",
        "DeiTForImageClassification": "models.systems.vit.checkpoint_transformers:DEIT",
        "DeiTForImageClassificationWithTeacher": "models.systems.vit.checkpoint_transformers:DEIT_TEACHER",
        "ViTMAEModel": "models.systems.vit.checkpoint_transformers:MAE_ENCODER",
        "Dinov2Model": "models.systems.vit.checkpoint_transformers:DINOV2_FAMILY",
        "Dinov2ForImageClassification": "models.systems.vit.checkpoint_transformers:DINOV2_CLASSIFIER",
    },
)
