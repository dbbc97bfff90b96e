"""ViT, DeiT, SWAG and ToMe. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Native, Purpose, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="vit",
            model="models.vit.model:ViT",
            purpose=Purpose(
                task=lambda config: "classify" if config.classes else "embed",
                size=lambda config: config.image_shape,
                classes=lambda config: int(config.classes),
            ),
            native=Native("image", lambda config: int(config.patches + config.special_tokens), "models.layers.native:images"),
            forwards={"classify": "models.vit.forward:classify"},
            graph="models.vit.graph:classifier_graph",
        ),
    ),
    sizes=(SizeTable("ViT", "vit", "arXiv 2010.11929", "models.vit.model:SIZES"),),
    families={
        "timm": "models.vit.published:TIMM",
        "deit": "models.vit.published:DEIT",
        "mae": "models.vit.published:MAE",
        "swag": "models.vit.published:SWAG",
        "torchvision": "models.vit.published:TORCHVISION",
    },
)
