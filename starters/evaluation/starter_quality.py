"""The base of the evaluations of starters."""

from __future__ import annotations

from models.bundle import BundleSpec
from training.evaluation.settings import QualitySettings


class StarterQuality(QualitySettings):
    """An evaluation of a starter, whose bundle has a card of its own."""

    def card(self, spec: BundleSpec) -> str:
        from starters.evaluation.cards import card  # cards show what evaluations measure

        return card.render(spec)
