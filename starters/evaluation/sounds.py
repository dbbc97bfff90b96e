"""How well instruments are named by their sound: notes of presets and fonts that were not trained on, and recorded samples.

Sounds are heard as the service hears them, window by window, scores averaged. Beside the network stand logistic regression and the nearest
neighbour, both on the mean of a sound's log-mel spectrogram over time, both learnt from sounds as the network was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import default_rng
from pydantic import Field
from torch import Tensor, nn

from models.bundle_schema import Rung, Sound
from models.media import audio_windows
from models.media.fbank import log_mel
from models.merge_schedule import MergeSchedule
from models.systems.mavil.model import MAViL
from models.systems.mavil.window_sources import SpectrogramWindows
from starters.data.sounds.audio_augmentation import augment
from starters.data.sounds.instrument_notes import InstrumentNotes, RenderedNotes, open_some
from starters.data.sounds.sampled_instruments import Instruments, SampledInstrument
from starters.data.sounds.soundfonts import Font, Wave
from starters.evaluation.baselines import LogisticFeatures, nearest_features
from starters.evaluation.starter_quality import StarterQuality
from training.data.decode import read_sound
from training.data.packages import DebianPackage, obtain
from training.data.source import SamplePreparation, UnreadableSample
from training.errors import DataError, RecipeError
from training.evaluation import metrics
from training.evaluation.metrics import MeanWithError
from training.evaluation.report import Measurement, calibrate, round_weights
from training.evaluation.settings import DataSplit
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork
from training.recipe import Recipe
from training.recipe_settings import RecipeSettings

LOGISTIC, NEAREST = "logistic regression", "nearest neighbour"
_STRENGTHS = (1e-3, 1e-2, 1e-1)
_LONGEST_S = 60.0
_CONFUSIONS = 12

Scores = npt.NDArray[np.float32]
"""(N, classes)."""
Features = npt.NDArray[np.float32]
"""(N, mel bins)."""


class Recordings(RecipeSettings):
    """Files whose names say what they are."""

    files: list[str] = Field(min_length=1)
    """Patterns of paths below the folder, without the ending."""
    right: list[str] = Field(min_length=1)
    """Labels, any of which is right."""


class Orchestra(RecipeSettings):
    """Notes of each class, as instruments play them, that are evaluated together."""

    name: str
    fonts: list[Instruments] = Field(min_length=1)


class Recorded(RecipeSettings):
    """A package of recorded samples."""

    name: str
    package: DebianPackage
    folder: str
    license: str
    recordings: list[Recordings] = Field(min_length=1)


class EarlierTests(RecipeSettings):
    """Tests of earlier versions, which were looked at: a table may go on with them, nothing is concluded from them."""

    test: list[Orchestra] = Field(default_factory=list)
    recorded: list[Recorded] = Field(default_factory=list)


class SoundsQuality(StarterQuality, SplitQuality):
    """Labels of notes of other instruments and of recorded samples, against logistic regression and the nearest neighbour on mean log-mel
    spectrograms. The primary figure is the share of the notes of the test whose best label is right, all classes alike."""

    kind: Literal["sounds"] = "sounds"
    validation: list[Orchestra] = Field(min_length=1)
    """For choices."""
    test: Orchestra
    recorded: list[Recorded] = Field(min_length=1)
    """Test, too."""
    seen: EarlierTests = EarlierTests()
    notes: int = Field(default=40, gt=1)
    """Notes of each class."""
    baseline_sounds: int = Field(default=8000, gt=0)
    """Sounds as trained on that the baselines learn from."""
    rungs: dict[str, int] = Field(default_factory=dict)
    """The ladder: tokens that merge in each block, by rung."""
    batch_size: int = Field(default=32, gt=0)
    rounds: int = Field(default=9, ge=3)
    """How the throughput of rungs is measured."""

    def check(self, recipe: Recipe, labels: Sequence[str], cache: Path) -> None:
        contest(self, recipe.data, recipe.sound, recipe.seed, cache)

    def planned_rungs(self) -> list[dict[str, Any]]:
        return [{"name": name, "schedule": merged} for name, merged in self.rungs.items()]

    def prepare(self, trained: TrainedNetwork) -> Look:
        asked = contest(self, trained.recipe.data, trained.recipe.sound, trained.recipe.seed, trained.cache)
        hearing = suitable(trained.network)
        degree = temperature(asked, hearing)
        round_weights(calibrate(hearing, degree), trained.recipe)
        return lambda split: {"temperature": round(degree, 4), **evaluate(asked, hearing, split)}

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        assert isinstance(trained.recipe.data, InstrumentNotes)
        sources: dict[str, Sequence[Font | SampledInstrument | Recorded]] = {
            "trained on": trained.recipe.data.fonts,
            "for choices": [font for played in self.validation for font in played.fonts],
            "test": [*self.test.fonts, *self.recorded],
            "test of an earlier version": [*(font for played in self.seen.test for font in played.fonts), *self.seen.recorded],
        }
        packages = {
            part: [source.package.model_dump() | {"license": source.license} for source in given] for part, given in sources.items()
        }
        rungs = [
            Rung(name=row["rung"], schedule=row["r"], accuracy=row["accuracy"]["value"], throughput=row["throughput"])
            for row in report["ladder"]
        ]
        return Measurement({"sounds": report}, rungs, data={"kind": trained.recipe.data.kind, "packages": packages})


@dataclass(frozen=True)
class Group:
    """Sounds that are evaluated together."""

    name: str
    waves: tuple[Wave, ...]
    right: tuple[tuple[int, ...], ...]
    """Classes, any of which is right for a sound; the first is the one that it is counted under."""
    sources: tuple[str, ...]
    """Sounds of the same source are no independent tries: a preset, the key of a drum, or a file."""
    seen: bool = False
    """Looked at with an earlier version."""

    def __len__(self) -> int:
        return len(self.waves)

    def hits(self, best: npt.NDArray[np.int64]) -> metrics.Right:
        return np.array([label in right for label, right in zip(best.tolist(), self.right, strict=True)])


@dataclass(frozen=True)
class Hearing:
    """How sounds become the network's input and the baselines'."""

    sound: Sound

    def windows(self, wave: Wave) -> list[Tensor]:
        samples, listener = torch.from_numpy(wave), SpectrogramWindows(self.sound)
        return [listener.cut(samples, window) for window in range(audio_windows.count_windows(len(wave), self.sound))]

    @torch.inference_mode()
    def logits(self, network: MAViL, waves: Sequence[Wave], merge: MergeSchedule | None = None) -> Scores:
        """(N, classes): of a sound of several windows the logarithm of its mean scores."""
        listener, answers = SpectrogramWindows(self.sound), []
        for wave in waves:
            scores = network.forward_audio(listener(self.windows(wave)), merge=merge).logits.log_softmax(dim=-1)
            answers.append(torch.logsumexp(scores, dim=0) - np.log(len(scores)))
        return np.asarray(torch.stack(answers).numpy())

    def features(self, waves: Sequence[Wave]) -> Features:
        bank = SpectrogramWindows(self.sound).bank
        return np.stack([log_mel(torch.from_numpy(wave), bank).mean(dim=0).numpy() for wave in waves])


@dataclass(frozen=True)
class Baselines:
    hearing: Hearing
    known: Features
    labels: npt.NDArray[np.int64]
    logistic: LogisticFeatures

    def predictions(self, group: Group) -> Mapping[str, npt.NDArray[np.int64]]:
        asked = self.hearing.features(group.waves)
        return {LOGISTIC: self.logistic.predict(asked), NEAREST: nearest_features(self.known, self.labels, asked)}


@dataclass(frozen=True)
class Contest:
    settings: SoundsQuality
    data: InstrumentNotes
    sound: Sound
    seed: int
    cache: Path

    @property
    def hearing(self) -> Hearing:
        return Hearing(self.sound)

    def validation(self) -> list[Group]:
        """Raises DataError."""
        return [group for played in self.settings.validation for group in self._notes(played)]

    def test(self) -> list[Group]:
        """The first is what the primary figure is about. Raises DataError."""
        fresh = [*self._notes(self.settings.test), *map(self._recorded, self.settings.recorded)]
        seen = [group for played in self.settings.seen.test for group in self._notes(played)]
        seen += map(self._recorded, self.settings.seen.recorded)
        return fresh + [replace(group, seen=True) for group in seen]

    def _notes(self, asked: Orchestra) -> list[Group]:
        """The same notes as instruments play them, and as somebody might have recorded them."""
        name = asked.name
        played = open_some(self.data.model_copy(update={"fonts": asked.fonts}), self.sound, self.cache)
        found = list(_notes(played, self.settings.notes, self.seed))
        waves, labels, sources = (tuple(column) for column in zip(*found, strict=True))
        right = tuple((label,) for label in labels)
        rate = self.sound.sample_rate
        rooms = tuple(augment(wave, rate, default_rng([self.seed, number])) for number, wave in enumerate(waves))
        return [Group(name, waves, right, sources), Group(f"{name}, in rooms", rooms, right, sources)]

    def _recorded(self, asked: Recorded) -> Group:
        folder = obtain(asked.package, self.cache) / asked.folder
        labels = list(self.data.instruments)
        waves, right, sources = [], [], []
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            row = next((row for row in asked.recordings if any(fnmatchcase(name, pattern) for pattern in row.files)), None)
            if row is None or not file.is_file():
                continue
            try:
                waves.append(read_sound(file, self.sound.sample_rate, _LONGEST_S).numpy())
            except UnreadableSample as error:
                raise DataError(str(error)) from error
            right.append(tuple(labels.index(label) for label in row.right))
            sources.append(name)
        if not waves:
            raise DataError(f"{folder}: no file has one of the names that release.quality gives for {asked.name}")
        return Group(asked.name, tuple(waves), tuple(right), tuple(sources))

    def baselines(self) -> Baselines:
        """Their strength is chosen on the validation sounds. Raises DataError."""
        played, hearing = self.data.open(SamplePreparation(sound=self.sound, cache=self.cache)), self.hearing
        waves, labels = [], []
        for number in range(self.settings.baseline_sounds):
            label = number % len(played.labels)
            try:
                waves.append(played.draw_sound(label, default_rng([self.seed, 1, number])))
            except UnreadableSample:
                continue
            labels.append(label)
        known, validation = hearing.features(waves), self.validation()
        asked = np.concatenate([hearing.features(group.waves) for group in validation])
        wanted = np.array([right[0] for group in validation for right in group.right])
        return Baselines(hearing, known, np.array(labels), LogisticFeatures(known, np.array(labels), asked, wanted, _STRENGTHS))


def contest(settings: SoundsQuality, data: Any, sound: Sound | None, seed: int, cache: Path) -> Contest:
    """Raises RecipeError."""
    if not isinstance(data, InstrumentNotes) or sound is None:
        raise RecipeError("release.quality: kind sounds is for data of kind notes, and a recipe with sound")
    for recorded_by in (*settings.recorded, *settings.seen.recorded):
        unknown = sorted({label for row in recorded_by.recordings for label in row.right} - set(data.instruments))
        if unknown:
            raise RecipeError(f"release.quality: {recorded_by.name}: {', '.join(unknown)}: no instrument has this name")
    return Contest(settings, data, sound, seed, cache)


def suitable(network: nn.Module) -> MAViL:
    """Raises RecipeError."""
    if not isinstance(network, MAViL) or network.config.fusion_depth or network.config.multi_label:
        raise RecipeError("release.quality: kind sounds is for a MAViL without fusion whose labels exclude each other")
    return network


def temperature(asked: Contest, network: MAViL) -> float:
    """The number to divide the network's logits by so that its scores fit the validation sounds best. Raises DataError."""
    groups = asked.validation()
    logits = np.concatenate([asked.hearing.logits(network, group.waves) for group in groups])
    return metrics.fit_temperature(logits, np.array([right[0] for group in groups for right in group.right]))


def evaluate(asked: Contest, network: MAViL, split: DataSplit) -> dict[str, Any]:
    """Raises DataError."""
    groups = asked.test() if split is DataSplit.TEST else asked.validation()
    rivals, hearing, labels = asked.baselines(), asked.hearing, list(asked.data.instruments)
    answers = [hearing.logits(network, group.waves) for group in groups]
    return {
        "split": split.value,
        "groups": [_row(group, logits, rivals.predictions(group), labels) for group, logits in zip(groups, answers, strict=True)],
        "confusions": _confusions(groups[0], answers[0], labels),
        "ladder": _ladder(asked, network, groups[0]),
    }


def _notes(played: RenderedNotes, count: int, seed: int) -> Iterator[tuple[Wave, int, str]]:
    """So many notes of each class that has voices, evenly over them. Raises DataError."""
    for label, voices in enumerate(played.voices):
        for number in range(count if voices else 0):
            voice = voices[number % len(voices)]
            try:
                wave = played.note(voice, default_rng([seed, label, number]))
            except UnreadableSample as error:
                raise DataError(f"{error}; keep the keys of {played.labels[label]} to those that it has") from error
            yield wave, label, f"drum {voice.keys[0]}" if voice.is_drum else f"{voice.font} {voice.preset}"


def _row(group: Group, logits: Scores, predictions: Mapping[str, npt.NDArray[np.int64]], labels: Sequence[str]) -> dict[str, Any]:
    best = logits.argmax(axis=1)
    right, counted = group.hits(best), np.array([first[0] for first in group.right])
    top5 = np.any([group.hits(column) for column in np.argsort(-logits, axis=1)[:, :5].T], axis=0)
    rivals = {name: group.hits(predicted) for name, predicted in predictions.items()}
    return {
        "name": group.name,
        "top1": metrics.cluster_mean(right, group.sources).to_json(),
        "top5": metrics.cluster_mean(top5, group.sources).to_json(),
        "sources": len(set(group.sources)),
        "seen": group.seen,
        "calibration_error": round(metrics.calibration_error_of(logits, right), 5),
        "baselines": {
            name: {
                "accuracy": metrics.cluster_mean(hits, group.sources).to_json(),
                "gain": metrics.cluster_mean(right.astype(np.float64) - hits, group.sources).to_json(),
            }
            for name, hits in rivals.items()
        },
        "classes": {
            labels[label]: [int(right[counted == label].sum()), int((counted == label).sum())] for label in sorted(set(counted.tolist()))
        },
    }


def _confusions(group: Group, logits: Scores, labels: Sequence[str]) -> list[list[Any]]:
    """The most frequent errors: what it was, what it was called, how often."""
    wrong = Counter(
        (labels[right[0]], labels[best])
        for right, best in zip(group.right, logits.argmax(axis=1).tolist(), strict=True)
        if best not in right
    )
    return [[truth, called, count] for (truth, called), count in wrong.most_common(_CONFUSIONS)]


def _ladder(asked: Contest, network: MAViL, group: Group) -> list[dict[str, Any]]:
    schedules = {name: MergeSchedule.constant(r) for name, r in asked.settings.rungs.items()}
    config, batch = network.config, asked.settings.batch_size
    audio = torch.rand(batch, 1, config.audio_frames, config.mel_bins)
    speed = metrics.relative_speed(lambda schedule: network.forward_audio(audio, merge=schedule), schedules, rounds=asked.settings.rounds)
    rows = []
    for name, schedule in schedules.items():
        right = group.hits(asked.hearing.logits(network, group.waves, schedule).argmax(axis=1))
        measured: MeanWithError = metrics.cluster_mean(right, group.sources)
        tokens = schedule.token_counts(config.audio_patches + 1, config.depth, protected=1)[-1]
        row = {"rung": name, "r": asked.settings.rungs[name], "tokens_out": tokens, "throughput": round(speed[name], 3)}
        rows.append(row | {"accuracy": measured.to_json()})
    return rows
