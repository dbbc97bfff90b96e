"""MAE. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="mae",
            model="models.systems.mae.model:MAE",
            bundle_defaults=BundleDefaults(lambda config: "autoencode"),
            dummy_forward=DummyForward(
                "image", lambda config: int(config.visible + config.special_tokens), "models.layers.forward:masked_images"
            ),
            forwards={"autoencode": "models.systems.mae.model:embed"},
            precise_tasks=frozenset({"autoencode"}),
            pools=lambda config: ("cls", "mean"),
            token_vectors=lambda config: True,
        ),
    ),
    sizes=(SizeTable("MAE", "mae", "arXiv 2111.06377", "models.systems.mae.model:SIZES"),),
    families={"mae_pretrained": "models.systems.mae.checkpoint:PRETRAINING"},
    hub_classes={"ViTMAEForPreTraining": "models.systems.mae.checkpoint:TRANSFORMERS"},
)
