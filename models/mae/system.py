"""MAE. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Native, Purpose, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="mae",
            model="models.mae.model:MAE",
            purpose=Purpose(lambda config: "autoencode"),
            native=Native("image", lambda config: int(config.visible + 1), "models.layers.native:masked_images"),
        ),
    ),
    sizes=(SizeTable("MAE", "mae", "arXiv 2111.06377", "models.mae.model:SIZES"),),
    families={"mae_pretrained": "models.mae.published:PRETRAINING"},
)
