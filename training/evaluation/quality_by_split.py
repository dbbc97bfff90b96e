"""Measurements of networks whose recipes judge by a split, the test split once: filled holes, restored pictures, depth, household
objects, camera moves, drawings and sounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.mae_st.model import VideoMAE
from models.spec import Preprocess, Rung
from training import goal, phases
from training.data.packages import packages_in
from training.data.registry import Mixture, open_source
from training.errors import RecipeError
from training.evaluation import clips, naming, sounds
from training.evaluation import depth as depths
from training.evaluation.filling import painting, restoring
from training.evaluation.quality import Measurement, calibrated, judged_file, looked_at_once, rounded, weights_and_settings, write_report
from training.evaluation.reconstruction import household_report, households
from training.evaluation.settings import (
    ClipsQuality,
    DepthQuality,
    HouseholdQuality,
    NamingQuality,
    PaintingQuality,
    Recorded,
    RestoringQuality,
    SoundsQuality,
    Split,
)
from training.phases import Workshop
from training.recipe import Recipe
from training.settings import Settings
from training.starters.clips.camera_moves import CameraClips
from training.starters.images.grounds import Grounds
from training.starters.images.named_drawings import NamedDrawings
from training.starters.images.stills import credited
from training.starters.renders.scenes import RenderedScenes, creators
from training.starters.sounds.notes import Notes
from training.starters.sounds.samplers import Sampled
from training.starters.sounds.soundfonts import Font


def restored(recipe: Recipe, settings: RestoringQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well halves of flags and emoji are restored, as `judged_once` writes it. Raises TrainingError."""

    def judged(preprocess: Preprocess) -> dict[str, Any]:
        return restoring.judge(settings, network, preprocess, split, shop.cache)

    return judged_once(judged, recipe, settings, network, judged_file(shop, "restoring", split), split)


def of_restoring(recipe: Recipe, settings: RestoringQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Look at the test pictures, or at what was written when they were looked at. Raises TrainingError."""
    report = restored(recipe, settings, network, Split.TEST, shop)
    styles = [*settings.emoji.styles, settings.validation]
    packages = [*settings.flags.packages, *(style.package for style in styles)]
    return Measurement({"restoring": report}, data={"packages": [package.model_dump() for package in packages]})


def painted(recipe: Recipe, settings: PaintingQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well holes are filled and flags restored, as `judged_once` writes it. Raises TrainingError."""

    def judged(preprocess: Preprocess) -> dict[str, Any]:
        return painting.judge(settings, network, preprocess, split, shop.cache)

    return judged_once(judged, recipe, settings, network, judged_file(shop, "painting", split), split)


def of_painting(recipe: Recipe, settings: PaintingQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Look at the test pictures, or at what was written when they were looked at. Raises TrainingError."""
    report = painted(recipe, settings, network, Split.TEST, shop)
    parts = recipe.data.parts if isinstance(recipe.data, Mixture) else []
    stills = [package for part in parts if isinstance(part.data, Grounds) for package in part.data.packages]
    return Measurement(
        {"painting": report},
        data={
            "packages": [package.model_dump() for package in packages_in([recipe.data, settings])],
            "creators": credited(stills, shop.cache),
        },
    )


def told(recipe: Recipe, settings: DepthQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well depth of held-out objects is told, as `judged_once` writes it. Raises TrainingError."""

    def judged(preprocess: Preprocess) -> dict[str, Any]:
        return depths.judge(settings, network, recipe.data, preprocess, split, shop.cache)

    return judged_once(judged, recipe, settings, network, judged_file(shop, "depth", split), split)


def of_depth(recipe: Recipe, settings: DepthQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Look at the test objects, or at what was written when they were looked at. Raises TrainingError."""
    return Measurement({"depth": told(recipe, settings, network, Split.TEST, shop)}, data=_renders_of(recipe, shop))


def households_reconstructed(
    recipe: Recipe, settings: HouseholdQuality, network: nn.Module, split: Split, shop: Workshop
) -> dict[str, Any]:
    """How well household objects are reconstructed by the network, whose occupancy is calibrated in place: on the test split once. Raises
    TrainingError."""
    contest = households.prepare(recipe, settings, rounded(network), shop)
    chosen = households.calibrate(contest)
    judged, file = weights_and_settings(settings, network), judged_file(shop, "household", split)

    def look() -> dict[str, Any]:
        source = households.held_out(contest, split)
        return household_report.report(settings, chosen, source, households.run(contest, chosen, source), split)

    return looked_at_once(file, judged, look) if split is Split.TEST else write_report(file, {"judged": judged, **look()})


def of_household(recipe: Recipe, settings: HouseholdQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network in place, then looks at the test objects, or at what was written when they were looked at. Raises
    TrainingError."""
    report = households_reconstructed(recipe, settings, network, Split.TEST, shop)
    return Measurement({"household": report}, data=_renders_of(recipe, shop))


def _renders_of(recipe: Recipe, shop: Workshop) -> dict[str, Any]:
    """The data of the training, and whom it is owed to."""
    trained_on = open_source(recipe.data, phases.preparation(recipe, None, shop.cache))
    assert isinstance(trained_on, RenderedScenes)
    packages = trained_on.settings.packages
    return {
        "packages": [entry.package.model_dump() | {"license": entry.license} for entry in packages],
        "creators": creators(trained_on.settings, shop.cache),
        "objects": dict(Counter(trained_on.categories.values())),
        "views": len(trained_on),
    }


def moves_named(recipe: Recipe, settings: ClipsQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well camera moves are named, as `judged_once` writes it. Raises TrainingError."""
    trained_on = phases.source_of(recipe, goal.released_phase(recipe), shop.cache)
    if not isinstance(trained_on, CameraClips) or not isinstance(network, VideoMAE):
        raise RecipeError("release.quality: kind clips is for a video_mae on data of kind camera-moves")

    def judged(_: Preprocess) -> dict[str, Any]:
        return clips.judge(settings, network, trained_on, split, shop.cache)

    return judged_once(judged, recipe, settings, network, judged_file(shop, "clips", split), split)


def of_clips(recipe: Recipe, settings: ClipsQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Look at the test videos, or at what was written when they were looked at. The default rung is chosen on those of validation. Raises
    TrainingError."""
    chosen_by, report = (moves_named(recipe, settings, network, split, shop) for split in (Split.VAL, Split.TEST))
    trained_on = phases.source_of(recipe, goal.released_phase(recipe), shop.cache)
    assert isinstance(trained_on, CameraClips) and isinstance(network, VideoMAE)
    ladder, default = clips.ladder(settings, network, chosen_by, report) if settings.ladder else ([], None)
    return Measurement(
        {"clips": report | {"validation": {name: chosen_by[name] for name in ("network", "baselines", "rungs")}}},
        ladder,
        default,
        data={
            "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
            "pictures": trained_on.stills.counts(),
        },
    )


def drawings_named(recipe: Recipe, settings: NamingQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well drawings are named and found, as `judged_once` writes it. Raises TrainingError."""

    def judged(preprocess: Preprocess) -> dict[str, Any]:
        return naming.judge(settings, network, recipe.data, recipe.words, preprocess, split, shop.cache)

    return judged_once(judged, recipe, settings, network, judged_file(shop, "naming", split), split)


def of_naming(recipe: Recipe, settings: NamingQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Look at the test artist, or at what was written when they were looked at. Raises TrainingError."""
    report = drawings_named(recipe, settings, network, Split.TEST, shop)
    data = recipe.data
    assert isinstance(data, NamedDrawings)
    styles = [*data.styles, settings.validation, settings.test]
    packages = [data.names.package, data.clip_art.package, data.titles.package]
    return Measurement(
        {"naming": report},
        data={
            "packages": [*(style.package.model_dump() for style in styles), *(package.model_dump() for package in packages)],
            "artists": [{"name": style.name, "license": style.license} for style in data.styles],
            "languages": data.names.languages,
        },
    )


def sounds_named(recipe: Recipe, settings: SoundsQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well instruments are named by the network, calibrated in place: on the test split once. Raises TrainingError."""
    asked = sounds.contest(settings, recipe.data, recipe.sound, recipe.seed, shop.cache)
    hearing = sounds.suitable(rounded(network))
    temperature = sounds.temperature(asked, hearing)
    rounded(calibrated(hearing, temperature))
    judged, file = weights_and_settings(settings, hearing), judged_file(shop, "sounds", split)

    def look() -> dict[str, Any]:
        return {"temperature": round(temperature, 4), **sounds.judge(asked, hearing, split)}

    return looked_at_once(file, judged, look) if split is Split.TEST else write_report(file, {"judged": judged, **look()})


def of_sounds(recipe: Recipe, settings: SoundsQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network in place, then looks at the test sounds, or at what was written when they were looked at. Raises
    TrainingError."""
    report = sounds_named(recipe, settings, network, Split.TEST, shop)
    assert isinstance(recipe.data, Notes)
    seen = settings.seen
    sources: dict[str, Sequence[Font | Sampled | Recorded]] = {
        "trained on": recipe.data.fonts,
        "for choices": [font for played in settings.validation for font in played.fonts],
        "test": [*settings.test.fonts, *settings.recorded],
        "test of an earlier version": [*(font for played in seen.test for font in played.fonts), *seen.recorded],
    }
    packages = {part: [source.package.model_dump() | {"license": source.license} for source in found] for part, found in sources.items()}
    rungs = [
        Rung(name=row["rung"], schedule=row["r"], accuracy=row["accuracy"]["value"], throughput=row["throughput"])
        for row in report["ladder"]
    ]
    return Measurement({"sounds": report}, rungs, data={"kind": recipe.data.kind, "packages": packages})


def judged_once(
    judge_by: Callable[[Preprocess], dict[str, Any]], recipe: Recipe, settings: Settings, network: nn.Module, file: Path, split: Split
) -> dict[str, Any]:
    """The report, written to the file: of the test split once. Raises TrainingError."""
    judged = weights_and_settings(settings, rounded(network))
    if recipe.preprocess is None:
        raise RecipeError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
    preprocess = recipe.preprocess

    def look() -> dict[str, Any]:
        return judge_by(preprocess)

    return looked_at_once(file, judged, look) if split is Split.TEST else write_report(file, {"judged": judged, **look()})


@dataclass(frozen=True)
class Kind:
    """A measurement by a split that a recipe may ask for."""

    name: str
    """Name in the reports' files."""
    judge: Callable[[Recipe, Any, nn.Module, Split, Workshop], dict[str, Any]]
    """The report of a split, written to its file. Raises TrainingError."""
    measure: Callable[[Recipe, Any, nn.Module, Workshop], Measurement]
    """The measurement as a bundle says it. Raises TrainingError."""


KINDS: Mapping[type[Settings | None], Kind] = {
    PaintingQuality: Kind("painting", painted, of_painting),
    RestoringQuality: Kind("restoring", restored, of_restoring),
    DepthQuality: Kind("depth", told, of_depth),
    HouseholdQuality: Kind("household", households_reconstructed, of_household),
    ClipsQuality: Kind("clips", moves_named, of_clips),
    NamingQuality: Kind("naming", drawings_named, of_naming),
    SoundsQuality: Kind("sounds", sounds_named, of_sounds),
}
"""By what `release.quality` is."""
