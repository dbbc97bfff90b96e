"""The recipe of the restorer: nobody whose flags it is evaluated on, and no held-out concept, is in what it is trained on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from models.diffmae.diffusion import Schedule
from models.diffmae.model import DiffMAEConfig
from training import recipe
from training.data.registry import Mixture
from training.evaluation.settings import RestoringQuality
from training.recipe import Recipe
from training.starters.images.emoji import Emoji, is_held_out
from training.starters.images.flags import Flags

RECIPE = Path("training/recipes/restorer.yaml")


@pytest.fixture(scope="module")
def restorer() -> Recipe:
    return recipe.read(RECIPE)


def parts(restorer: Recipe) -> tuple[Flags, Emoji, RestoringQuality]:
    assert isinstance(restorer.data, Mixture)
    drawn, emoji = (part.data for part in restorer.data.parts)
    assert isinstance(drawn, Flags) and isinstance(emoji, Emoji)
    assert restorer.release is not None and isinstance(restorer.release.quality, RestoringQuality)
    return drawn, emoji, restorer.release.quality


def test_no_vendor_whose_flags_are_evaluated_is_trained_on(restorer: Recipe) -> None:
    drawn, emoji, quality = parts(restorer)
    evaluated = {vendor.package.name for vendor in quality.flags.emoji} | {
        quality.flags.clip_art.package.name,
        quality.validation.package.name,
    }
    assert len(evaluated) == 4
    trained_on = {artwork.package.name for artwork in drawn.artworks} | {style.package.name for style in emoji.styles}
    assert not evaluated & trained_on
    assert all(phase.data is None for phase in restorer.phases)


def test_the_concepts_that_are_evaluated_are_those_held_out(restorer: Recipe) -> None:
    _, emoji, quality = parts(restorer)
    assert quality.emoji == emoji.model_copy(update={"part": "test"})
    words = ["".join(random.Random(number).choices("abcdefgh-", k=9)) for number in range(3000)]
    assert sum(is_held_out(word, emoji.held_out_every) for word in words) == pytest.approx(300, abs=60)


def test_phases_follow_one_another_and_the_last_is_released(restorer: Recipe) -> None:
    assert [phase.start for phase in restorer.phases] == [None, *(phase.name for phase in restorer.phases[:-1])]
    assert len(restorer.phases) <= 6
    assert restorer.release is not None and restorer.release.phase is None
    assert all(phase.loop.ema for phase in restorer.phases)


def test_few_times_are_pure_noise(restorer: Recipe) -> None:
    config: Any = restorer.model_of(restorer.phases[0]).resolved(labels=0)
    assert isinstance(config, DiffMAEConfig) and config.mask_channel and config.head_width
    assert (Schedule().alphas_bar() < 1e-3).float().mean().item() == pytest.approx(0.51, abs=0.01)
    assert (config.schedule.alphas_bar() < 1e-3).float().mean().item() == pytest.approx(0.11, abs=0.01)
