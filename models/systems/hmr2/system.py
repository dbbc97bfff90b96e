"""HMR2. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="hmr2",
            model="models.systems.hmr2.model:HMR2",
            bundle_defaults=BundleDefaults(lambda config: "body"),
            dummy_forward=DummyForward("crop", lambda config: int(config.grid[0] * config.grid[1]), "models.layers.forward:images"),
        ),
    ),
    sizes=(SizeTable("HMR2", "hmr2", "arXiv 2305.20091", "models.systems.hmr2.model:PUBLISHED"),),
    families={"hmr2": "models.systems.hmr2.checkpoint:FAMILY"},
)
