"""MCC. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.bundle_schema import QuerySpace
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

PATCH_SIZE, WINDOW = 16, 8
"""Defaults of configs without these fields."""
GEOMETRY_VALUES = 11
"""Number of geometric values per pixel of a latent token: its point, whether there is one, its colour, the thickness behind it, and the
colour of the back. Defined here, since gateways use it without PyTorch."""


def latent_values(config: Mapping[str, Any]) -> int:
    """Return the number of values of a scene's latent tokens. config: of a bundle."""
    side, window = int(config["image_size"]) // int(config.get("patch_size", PATCH_SIZE)), int(config.get("window", WINDOW))
    geometry = GEOMETRY_VALUES * window**2 if config.get("back") else 0
    return (side**2 + 1) * (2 * int(config.get("width", 768)) + geometry)


SYSTEM = System(
    architectures=(
        Architecture(
            name="mcc",
            model="models.systems.mcc.model:MCC",
            bundle_defaults=BundleDefaults(lambda config: "reconstruct", space=lambda config: QuerySpace(source_size=800)),
            steps={"reconstruct": "models.systems.mcc.steps:reconstruct_steps"},
            precise_tasks=frozenset({"reconstruct"}),
            dummy_forward=DummyForward("scene", lambda config: 2 * (int(config.side) ** 2 + 1), "models.systems.mcc.queries:scene_queries"),
        ),
        Architecture(
            name="mcc_photograph",
            model="models.systems.mcc.photo_pipeline:PhotographMCC",
            bundle_defaults=BundleDefaults(lambda config: "reconstruct", size=lambda config: None),
            steps={"reconstruct": "models.systems.mcc.photo_pipeline:photograph_steps"},
            precise_tasks=frozenset({"reconstruct"}),
            merges=False,
            assemble="models.systems.mcc.photo_pipeline:assemble",
        ),
    ),
    sizes=(SizeTable("MCC", "mcc", "arXiv 2301.08247", "models.systems.mcc.model:PUBLISHED"),),
    families={"mcc": "models.systems.mcc.checkpoint:FAMILY"},
)
