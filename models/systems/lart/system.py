"""LART. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.people import ava
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System


def _names(config: Any) -> Sequence[str]:
    return tuple(ava.CLASS_NAMES.values()) if config.actions == len(ava.CLASS_NAMES) else ()


SYSTEM = System(
    architectures=(
        Architecture(
            name="lart",
            model="models.systems.lart.model:LART",
            bundle_defaults=BundleDefaults(
                task=lambda config: "actions", size=lambda config: None, classes=lambda config: int(config.actions), names=_names
            ),
            dummy_forward=DummyForward("track", lambda config: int(config.frames), "models.people.track_batch:tracks"),
        ),
    ),
    sizes=(SizeTable("LART", "lart", "arXiv 2304.01199", "models.systems.lart.model:PUBLISHED"),),
    families={"lart": "models.systems.lart.checkpoint:FAMILY"},
)
