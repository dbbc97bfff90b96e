"""README of a shipped bundle, with a section for each kind of measurement."""

from __future__ import annotations

from collections.abc import Mapping

from models.bundle import BundleSpec
from starters.evaluation.cards import actions, actions_pipeline, clips, depth, flags, inpainting, naming, reconstruction, sounds
from training.evaluation.cards import card
from training.evaluation.cards.card import Sections

_WHOLE: Mapping[str, Sections] = {"pipeline": actions_pipeline.sections, "sources": flags.sections}
"""Lines of a separate README by measurement."""
_SECTIONS: Mapping[str, Sections] = {
    "actions": actions.section,
    "clips": clips.section,
    "depth": depth.section,
    "inpainting": inpainting.section,
    "naming": naming.section,
    "reconstruction": reconstruction.section,
    "sounds": sounds.section,
}
"""Section of the README by measurement."""


def render(spec: BundleSpec) -> str:
    for measurement, sections in _WHOLE.items():
        if measurement in spec.quality:
            return "\n".join(sections(spec))
    [section] = [section for measurement, section in _SECTIONS.items() if measurement in spec.quality] or [card.describe_quality]
    return card.render(spec, section)
