"""The null model, to measure everything around a network."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="null",
            model="models.systems.null.steps:Null",
            bundle_defaults=BundleDefaults(lambda config: "classify", size=lambda config: None, classes=lambda config: int(config.classes)),
            forwards={"classify": "models.systems.null.steps:classify"},
            steps={"classify": "models.systems.null.steps:classify_steps"},
        ),
    ),
)
