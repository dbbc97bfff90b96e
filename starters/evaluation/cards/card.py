"""The README of a shipped bundle: its section about quality is chosen by what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from models.bundle import BundleSpec
from starters.evaluation.cards import actions, actions_pipeline, clips, depth, flags, inpainting, naming, reconstruction, sounds
from training.evaluation.cards import card
from training.evaluation.cards.card import Sections

_WHOLE: Mapping[str, Sections] = {"pipeline": actions_pipeline.sections, "sources": flags.sections}
"""Measurement → the lines of a README of its own."""
_SECTIONS: Mapping[str, Sections] = {
    "actions": actions.section,
    "clips": clips.section,
    "depth": depth.section,
    "inpainting": inpainting.section,
    "naming": naming.section,
    "reconstruction": reconstruction.section,
    "sounds": sounds.section,
}
"""Measurement → the section of the README about it."""


def render(spec: BundleSpec) -> str:
    for measurement, sections in _WHOLE.items():
        if measurement in spec.quality:
            return "\n".join(sections(spec))
    [section] = [section for measurement, section in _SECTIONS.items() if measurement in spec.quality] or [card.describe_quality]
    return card.render(spec, section)
