"""Moments that a network of actions is evaluated on, for choices or at the end: of recordings, and of authored motions by other bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.evaluation.actions import moments
from training.evaluation.actions.moments import Moments
from training.evaluation.settings import ActionsQuality, Split
from training.starters.people.motions import MotionTracks, authored_takes, open_takes

AUTHORED_SEEDS: Mapping[Split, int] = {Split.VAL: 1, Split.TEST: 2}
"""Seeds of bodies and tempos; that of training is another."""


@dataclass(frozen=True)
class Views:
    """How often and from how many cameras moments are seen. The seed decides where cameras are."""

    every: float
    cameras: int
    seed: int


def recorded(split: Split, source: MotionTracks, settings: ActionsQuality, views: Views, cache: Path) -> Moments:
    """Raises DataError."""
    takes = open_takes(settings.validation if split is Split.VAL else settings.held_out, source.settings, cache)
    return moments.of_takes(takes, source, every=views.every, cameras=views.cameras, seed=views.seed)


def authored(split: Split, source: MotionTracks, settings: ActionsQuality, views: Views) -> Moments:
    takes = authored_takes(source.settings, settings.authored, AUTHORED_SEEDS[split])
    return moments.of_takes(takes, source, every=views.every, cameras=views.cameras, seed=views.seed)


def trained(source: MotionTracks, views: Views) -> Moments:
    """The recordings of training, from other cameras."""
    takes = [take for take in source.takes if take.recorded]
    return moments.of_takes(takes, source, every=views.every, cameras=views.cameras, seed=views.seed)


def for_choices(source: MotionTracks, settings: ActionsQuality, views: Views, cache: Path) -> Moments:
    """Moments that temperatures and thresholds are fitted to: those of the validation split, and of the recordings of training, since no
    others show all classes. Raises DataError."""
    return moments.joined(
        recorded(Split.VAL, source, settings, views, cache), authored(Split.VAL, source, settings, views), trained(source, views)
    )
