"""Base class of the evaluations of starters."""

from __future__ import annotations

from models.bundle import BundleSpec
from training.evaluation.settings import QualitySettings


class StarterQuality(QualitySettings):
    """Evaluation of a starter, whose bundle has its own card."""

    def card(self, spec: BundleSpec) -> str:
        from starters.evaluation import cards  # cards import evaluations

        return cards.render(spec)
