"""Kinds of evaluations: the one place that says how a network is measured, by what `release.quality` of its recipe is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from models.lart.model import LART
from models.mae_st.model import VideoMAE
from models.spec import Preprocess, Rung
from models.vit.model import ViT
from starters.data.clips.camera_moves import CameraClips
from starters.data.images.flags import Flags, build
from starters.data.images.named_drawings import NamedDrawings
from starters.data.people.motions import MotionTracks
from starters.data.renders.scenes import RenderedScenes, Renders, creators
from starters.data.sounds.instrument_notes import Notes
from starters.data.sounds.sampled_instruments import Sampled
from starters.data.sounds.soundfonts import Font
from starters.evaluation import clips, depth, emoji_retrieval, flags, sounds
from starters.evaluation.actions import measure as actions
from starters.evaluation.actions import plot as confusion
from starters.evaluation.data_settings import Recorded
from starters.evaluation.inpainting import plot, report, step_counts
from starters.evaluation.reconstruction import report as reconstruction_report
from starters.evaluation.reconstruction import scores
from training import phases
from training.data.registry import open_source
from training.errors import RecipeError, TrainingError
from training.evaluation import held_out
from training.evaluation.ladder import ladder
from training.evaluation.measurement import (
    Measurement,
    calibrated,
    looked_at_once,
    reports,
    rounded,
    weights_and_settings,
    write_report,
)
from training.evaluation.settings import (
    ActionsQuality,
    ClipsQuality,
    DepthQuality,
    FlagsQuality,
    HeldOutQuality,
    InpaintingQuality,
    NamingQuality,
    ReconstructionQuality,
    SoundsQuality,
    Split,
)
from training.phases import Workshop
from training.recipe import Recipe
from training.settings import Settings

Report = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A trained network of a recipe, which an evaluation may calibrate in place."""

    recipe: Recipe
    """As `Recipe.measured` gives it."""
    settings: Any
    """`release.quality`."""
    network: nn.Module
    """Rounded as a bundle stores it, if anything is measured."""
    labels: tuple[str, ...]
    shop: Workshop

    @property
    def cache(self) -> Path:
        return self.shop.cache

    @property
    def preprocess(self) -> Preprocess:
        """Raises RecipeError."""
        if self.recipe.preprocess is None:
            raise RecipeError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
        return self.recipe.preprocess

    def trained(self, phase: str) -> nn.Module:
        """The network of another phase, rounded. Raises TrainingError."""
        return rounded(phases.trained_network(self.recipe, phase, self.labels, self.shop), self.recipe)

    def file(self, split: Split) -> Path:
        """File of the report of a split."""
        return reports(self.shop) / f"{self.settings.kind}-{split.value}.json"


def evaluation(recipe: Recipe, shop: Workshop, phase: str | None = None) -> Evaluation:
    """phase: None for that of the release. Raises TrainingError."""
    assert recipe.release is not None
    released = recipe.released_phase
    evaluated = next((one for one in recipe.phases if one.name == (phase or released.name)), None)
    if evaluated is None:
        raise TrainingError(f"--phase: {phase} is no phase; there are {', '.join(one.name for one in recipe.phases)}")
    labels = phases.source_of(recipe, released, shop.cache).labels
    network = phases.trained_network(recipe, evaluated.name, labels, shop)
    quality = recipe.release.quality
    return Evaluation(recipe.measured(evaluated), quality, rounded(network, recipe) if quality else network, labels, shop)


Look = Callable[[Split], Report]
"""Looks at a split. Raises TrainingError."""


@dataclass(frozen=True)
class Whole:
    """A measurement without splits."""

    measure: Callable[[Evaluation], Measurement]
    """Raises TrainingError."""


@dataclass(frozen=True)
class BySplit:
    """A measurement of the validation split, as often as somebody likes, and of the test split, once."""

    begin: Callable[[Evaluation], Look]
    """Checks, and calibrates the network. Raises TrainingError."""
    measurement: Callable[[Evaluation, Report], Measurement]
    """From the report of the test split. Raises TrainingError."""


def measured(asked: Evaluation) -> Measurement:
    """The measurements of the test split; what was looked at before is read again. Raises TrainingError."""
    if asked.settings is None:
        return Measurement()
    kind = KINDS[type(asked.settings)]
    return kind.measure(asked) if isinstance(kind, Whole) else kind.measurement(asked, evaluated(asked, kind, Split.TEST))


def evaluated(asked: Evaluation, kind: BySplit, split: Split) -> Report:
    """The report of a split, which is written to its file. Raises TrainingError."""
    look = kind.begin(asked)
    of, file = weights_and_settings(asked.settings, asked.network), asked.file(split)
    return looked_at_once(file, of, lambda: look(split)) if split is Split.TEST else write_report(file, of, look(split))


def _flags(asked: Evaluation) -> Measurement:
    recipe, settings, network = asked.recipe, asked.settings, asked.network
    data, preprocess = recipe.data, recipe.preprocess
    if not isinstance(data, Flags) or not isinstance(network, ViT) or preprocess is None:
        raise RecipeError("release.quality: kind flags is for a ViT on data of kind flags")
    task, corpus = flags.Task(data, preprocess, settings.ladder, recipe.seed), build(data, asked.cache)
    short, scratch = (asked.trained(name) for name in (settings.with_pretraining, settings.without_pretraining))
    assert isinstance(short, ViT) and isinstance(scratch, ViT)
    temperature = flags.temperature(task, corpus, network)
    rounded(calibrated(network, temperature), recipe)
    found = flags.measure(task, corpus, network, short, scratch)
    files = sorted(settings.examples.glob("*.png")) if settings.examples else []
    [epochs] = [phase.loop.epochs for phase in recipe.phases if phase.name == settings.without_pretraining]
    also = {
        "temperature": round(temperature, 4),
        "without_pretraining": {"epochs": epochs, **found.quality["without_pretraining"]},
        "examples": flags.examples(files, network, preprocess, tuple(data.labels.values())),
    }
    return replace(
        found,
        quality=found.quality | also,
        data={
            "packages": [package.model_dump() for package in data.packages],
            "drawings": {"train": len(corpus.train), "val": len(corpus.val)},
            "test_pictures": {gallery.name: len(gallery.paths) for gallery in (*corpus.galleries, corpus.unfiltered)},
        },
    )


def _held_out(asked: Evaluation) -> Measurement:
    source = held_out.source(asked.recipe, asked.settings, asked.labels, asked.cache)
    return held_out.measure(asked.network, source, asked.labels, asked.settings.ladder)


def _inpainting(asked: Evaluation) -> Measurement:
    """Scores only what was not scored before."""
    contest = step_counts.prepare(asked.recipe, asked.network, asked.shop)
    trained_on = open_source(asked.recipe.data, phases.preparation(asked.recipe, None, asked.cache))
    quality = report.summary(contest, step_counts.run(contest))
    return Measurement(
        quality,
        data={
            "packages": [asked.settings.data.package.model_dump()],
            "drawings": {"train": len(trained_on), "test": len(contest.drawings)},
            "distances_in": asked.settings.features.model_dump(),
        },
        drawn={plot.FILE: plot.draw(quality)},
    )


def _renders(asked: Evaluation) -> dict[str, Any]:
    """The data of the training."""
    trained_on = open_source(asked.recipe.data, phases.preparation(asked.recipe, None, asked.cache))
    assert isinstance(trained_on, RenderedScenes)
    return {
        "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
        "objects": dict(Counter(trained_on.categories.values())),
        "views": len(trained_on),
    }


def _credited(asked: Evaluation) -> dict[str, Any]:
    """The same, and whom it is owed to."""
    assert isinstance(asked.recipe.data, Renders)
    return {**_renders(asked), "creators": creators(asked.recipe.data, asked.cache)}


def _begin_actions(asked: Evaluation) -> Look:
    settings, network, seed = asked.settings, asked.network, asked.recipe.seed
    source = phases.source_of(asked.recipe, asked.recipe.released_phase, asked.cache)
    if not isinstance(source, MotionTracks) or not isinstance(network, LART):
        raise RecipeError("release.quality: kind actions is for a LART on data of kind motions")

    def look(split: Split) -> Report:
        if split is Split.VAL:
            return actions.validation(source, settings, network, asked.cache, seed)
        single = asked.trained(settings.single_frames)
        assert isinstance(single, LART)
        return actions.measure(source, settings, network, single, asked.cache, seed)

    return look


def _actions(asked: Evaluation, found: Report) -> Measurement:
    data = (asked.recipe.released_phase.data or asked.recipe.data).model_dump()
    packages = [*data["packages"]["pypi"].values(), *data["packages"]["debian"].values()]
    named = [{field: package[field] for field in ("name", "version", "sha256")} for package in packages]
    return Measurement(
        {"actions": {name: value for name, value in found.items() if name != "judged"}},
        data={"kind": data["kind"], "packages": named},
        drawn={confusion.FILE: confusion.draw(found["confusion"], asked.labels)},
    )


def _begin_depth(asked: Evaluation) -> Look:
    data = asked.recipe.data
    return lambda split: depth.evaluate(asked.settings, asked.network, data, asked.preprocess, split, asked.cache)


def _begin_reconstruction(asked: Evaluation) -> Look:
    settings, contest = asked.settings, scores.prepare(asked.recipe, asked.settings, asked.network, asked.shop)
    chosen = scores.calibrate(contest)

    def look(split: Split) -> Report:
        source = scores.held_out(contest, split)
        return reconstruction_report.report(settings, chosen, source, scores.run(contest, chosen, source), split)

    return look


def _reconstruction(asked: Evaluation, found: Report) -> Measurement:
    return Measurement({"reconstruction": found}, data=_credited(asked))


def _begin_clips(asked: Evaluation) -> Look:
    trained_on, network = phases.source_of(asked.recipe, asked.recipe.released_phase, asked.cache), asked.network
    if not isinstance(trained_on, CameraClips) or not isinstance(network, VideoMAE):
        raise RecipeError("release.quality: kind clips is for a video_mae on data of kind camera-moves")
    return lambda split: clips.evaluate(asked.settings, network, trained_on, split, asked.cache)


def _clips(asked: Evaluation, found: Report) -> Measurement:
    """The default rung is chosen on the validation videos."""
    settings: ClipsQuality = asked.settings
    trained_on = phases.source_of(asked.recipe, asked.recipe.released_phase, asked.cache)
    assert isinstance(trained_on, CameraClips) and isinstance(asked.network, VideoMAE)
    chosen_by = evaluated(asked, BySplit(_begin_clips, _clips), Split.VAL)
    accuracy, by = ({name: row["value"] for name, row in report["rungs"].items()} for report in (found, chosen_by))
    rungs, default = ladder(settings.ladder, asked.network, accuracy, by) if settings.ladder else ([], None)
    return Measurement(
        {"clips": found | {"validation": {name: chosen_by[name] for name in ("network", "baselines", "rungs")}}},
        rungs,
        default,
        data={
            "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
            "pictures": trained_on.stills.counts(),
        },
    )


def _begin_naming(asked: Evaluation) -> Look:
    data, words = asked.recipe.data, asked.recipe.words
    return lambda split: emoji_retrieval.evaluate(asked.settings, asked.network, data, words, asked.preprocess, split, asked.cache)


def _naming(asked: Evaluation, found: Report) -> Measurement:
    settings, data = asked.settings, asked.recipe.data
    assert isinstance(data, NamedDrawings)
    styles = [*data.styles, settings.validation, settings.test]
    packages = [*(style.package for style in styles), data.names.package, data.clip_art.package, data.titles.package]
    return Measurement(
        {"naming": found},
        data={
            "packages": [package.model_dump() for package in packages],
            "artists": [{"name": style.name, "license": style.license} for style in data.styles],
            "languages": data.names.languages,
        },
    )


def _begin_sounds(asked: Evaluation) -> Look:
    contest = sounds.contest(asked.settings, asked.recipe.data, asked.recipe.sound, asked.recipe.seed, asked.cache)
    hearing = sounds.suitable(asked.network)
    temperature = sounds.temperature(contest, hearing)
    rounded(calibrated(hearing, temperature), asked.recipe)
    return lambda split: {"temperature": round(temperature, 4), **sounds.evaluate(contest, hearing, split)}


def _sounds(asked: Evaluation, found: Report) -> Measurement:
    settings: SoundsQuality = asked.settings
    assert isinstance(asked.recipe.data, Notes)
    sources: dict[str, Sequence[Font | Sampled | Recorded]] = {
        "trained on": asked.recipe.data.fonts,
        "for choices": [font for played in settings.validation for font in played.fonts],
        "test": [*settings.test.fonts, *settings.recorded],
        "test of an earlier version": [*(font for played in settings.seen.test for font in played.fonts), *settings.seen.recorded],
    }
    packages = {part: [source.package.model_dump() | {"license": source.license} for source in given] for part, given in sources.items()}
    rungs = [
        Rung(name=row["rung"], schedule=row["r"], accuracy=row["accuracy"]["value"], throughput=row["throughput"])
        for row in found["ladder"]
    ]
    return Measurement({"sounds": found}, rungs, data={"kind": asked.recipe.data.kind, "packages": packages})


KINDS: Mapping[type[Settings], Whole | BySplit] = {
    FlagsQuality: Whole(_flags),
    HeldOutQuality: Whole(_held_out),
    InpaintingQuality: Whole(_inpainting),
    ActionsQuality: BySplit(_begin_actions, _actions),
    ClipsQuality: BySplit(_begin_clips, _clips),
    DepthQuality: BySplit(_begin_depth, lambda asked, found: Measurement({"depth": found}, data=_credited(asked))),
    ReconstructionQuality: BySplit(_begin_reconstruction, _reconstruction),
    NamingQuality: BySplit(_begin_naming, _naming),
    SoundsQuality: BySplit(_begin_sounds, _sounds),
}
"""By what `release.quality` is."""
