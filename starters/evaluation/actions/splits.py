"""Moments of recordings that a network of actions is evaluated on, for choices or at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starters.data.people.motions import MotionTracks, open_takes
from starters.evaluation.actions import samples
from starters.evaluation.actions.samples import Moments
from starters.evaluation.actions.settings import ActionsSettings
from training.errors import RecipeError
from training.evaluation.settings import DataSplit


@dataclass(frozen=True)
class Views:
    """How often and from how many cameras moments are seen. The seed decides where cameras are."""

    every: float
    cameras: int
    seed: int


def recorded(split: DataSplit, source: MotionTracks, settings: ActionsSettings, views: Views, cache: Path) -> Moments:
    """Raises DataError, and RecipeError for a split without recordings."""
    recordings = settings.validation if split is DataSplit.VAL else settings.held_out
    if not recordings:
        raise RecipeError(f"release.quality: it lists no recordings of the split {split.value}; --split test evaluates the test, once")
    takes = open_takes(recordings, source.settings, cache)
    return samples.of_takes(takes, source, every=views.every, cameras=views.cameras, seed=views.seed)


def trained(source: MotionTracks, views: Views) -> Moments:
    """The recordings of training, from other cameras."""
    return samples.of_takes(source.takes, source, every=views.every, cameras=views.cameras, seed=views.seed)


def for_choices(source: MotionTracks, settings: ActionsSettings, views: Views, cache: Path) -> Moments:
    """Moments that thresholds are chosen by: of the recordings of training, since no others show all classes, and of the validation split,
    if there is one. Raises DataError."""
    known = trained(source, views)
    return samples.joined(known, recorded(DataSplit.VAL, source, settings, views, cache)) if settings.validation else known
