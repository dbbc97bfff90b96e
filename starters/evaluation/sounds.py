"""Evaluation of instrument classifiers on notes of held-out presets and fonts, and on recorded samples.

Sounds are classified as in the service: window by window, scores averaged. The baseline is logistic regression on
the mean of a sound's log-mel spectrogram over time, fitted to sounds drawn as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import default_rng
from pydantic import Field
from torch import Tensor, nn

from models.arrays import Float32Array
from models.bundle_schema import Rung, Sound
from models.media.audio import count_windows
from models.media.fbank import log_mel
from models.merge_schedule import MergeSchedule
from models.systems.mavil.model import MAViL
from models.systems.mavil.window_sources import SpectrogramWindows
from starters.data.sounds.audio_augmentation import augment
from starters.data.sounds.instrument_notes import InstrumentNotes, RenderedNotes, open_some
from starters.data.sounds.sampled_instruments import Instruments, SampledInstrument
from starters.data.sounds.soundfonts import Font, Wave
from starters.evaluation.baselines import LogisticFeatures
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

LOGISTIC = "logistic regression"
_STRENGTHS = (1e-3, 1e-2, 1e-1)
_MAX_DURATION_S = 60.0


class Recordings(RecipeSettings):
    """Files whose names state their labels."""

    files: list[str] = Field(min_length=1)
    """Patterns of paths below the folder, without suffix."""
    right: list[str] = Field(min_length=1)
    """Labels, each of which counts as right."""


class Orchestra(RecipeSettings):
    """Fonts whose notes of each class are evaluated together."""

    name: str
    fonts: list[Instruments] = Field(min_length=1)


class SamplePackage(RecipeSettings):
    """Package of recorded samples."""

    name: str
    package: DebianPackage
    folder: str
    license: str
    recordings: list[Recordings] = Field(min_length=1)


class SoundsQuality(StarterQuality, SplitQuality):
    """Accuracy on notes of other fonts and on recorded samples, against logistic regression on mean log-mel spectrograms.

    The primary figure is the share of the test's notes whose best label is right, with the same number of notes of each class."""

    kind: Literal["sounds"] = "sounds"
    validation: list[Orchestra] = Field(min_length=1)
    """Fonts of the validation split."""
    test: Orchestra
    recorded: list[SamplePackage] = Field(min_length=1)
    """Recorded samples of the test split."""
    notes: int = Field(default=40, gt=1)
    """Number of notes of each class."""
    baseline_sounds: int = Field(default=8000, gt=0)
    """Number of training sounds that the baseline is fitted to."""
    rungs: dict[str, int] = Field(default_factory=dict)
    """Number of tokens that merge in each block, by rung."""
    batch_size: int = Field(default=32, gt=0)
    rounds: int = Field(default=9, ge=3)
    """Number of rounds of the throughput measurement."""

    def check(self, recipe: Recipe, labels: Sequence[str], cache: Path) -> None:
        prepare_evaluation(self, recipe.data, recipe.sound, recipe.seed, cache)

    def planned_rungs(self) -> list[dict[str, Any]]:
        return [{"name": name, "schedule": merged} for name, merged in self.rungs.items()]

    def prepare(self, trained: TrainedNetwork) -> Look:
        task = prepare_evaluation(self, trained.recipe.data, trained.recipe.sound, trained.recipe.seed, trained.cache)
        network = require_audio_network(trained.network)
        degree = temperature(task, network)
        round_weights(calibrate(network, degree), trained.recipe)
        return lambda split: {"temperature": round(degree, 4), **evaluate(task, network, split)}

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        assert isinstance(trained.recipe.data, InstrumentNotes)
        sources: dict[str, Sequence[Font | SampledInstrument | SamplePackage]] = {
            "trained on": trained.recipe.data.fonts,
            "for choices": [font for played in self.validation for font in played.fonts],
            "test": [*self.test.fonts, *self.recorded],
        }
        packages = {
            part: [source.package.model_dump() | {"license": source.license} for source in entries] for part, entries in sources.items()
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
    """Classes that are right for a sound; it is counted for the first."""
    sources: tuple[str, ...]
    """Preset, key of a drum, or file of each sound. Sounds of the same source are not independent."""

    def __len__(self) -> int:
        return len(self.waves)

    def hits(self, best: npt.NDArray[np.int64]) -> metrics.Right:
        return np.array([label in right for label, right in zip(best.tolist(), self.right, strict=True)])


@dataclass(frozen=True)
class SoundFeatures:
    """Inputs of the network and of the baselines, and the network's outputs."""

    sound: Sound

    def windows(self, wave: Wave) -> list[Tensor]:
        samples, listener = torch.from_numpy(wave), SpectrogramWindows(self.sound)
        return [listener.slice_window(samples, window) for window in range(count_windows(len(wave), self.sound))]

    @torch.inference_mode()
    def logits(self, network: MAViL, waves: Sequence[Wave], merge: MergeSchedule | None = None) -> Float32Array:
        """Return logits (N, classes); of several windows the logarithm of the mean scores."""
        windows, logits = SpectrogramWindows(self.sound), []
        for wave in waves:
            scores = network.forward_audio(windows(self.windows(wave)), merge=merge).logits.log_softmax(dim=-1)
            logits.append(torch.logsumexp(scores, dim=0) - np.log(len(scores)))
        return np.asarray(torch.stack(logits).numpy())

    def features(self, waves: Sequence[Wave]) -> Float32Array:
        bank = SpectrogramWindows(self.sound).bank
        return np.stack([log_mel(torch.from_numpy(wave), bank).mean(dim=0).numpy() for wave in waves])


@dataclass(frozen=True)
class SoundEvaluation:
    settings: SoundsQuality
    data: InstrumentNotes
    sound: Sound
    seed: int
    cache: Path

    @property
    def hearing(self) -> SoundFeatures:
        return SoundFeatures(self.sound)

    def validation(self) -> list[Group]:
        """Render the sounds of the validation split. Raises DataError."""
        return [group for played in self.settings.validation for group in self._notes(played)]

    def test(self) -> list[Group]:
        """Render the sounds of the test split; the primary figure is about the first group. Raises DataError."""
        return [*self._notes(self.settings.test), *map(self._load_samples, self.settings.recorded)]

    def _notes(self, fonts: Orchestra) -> list[Group]:
        """Render notes, and the same notes augmented."""
        name = fonts.name
        played = open_some(self.data.model_copy(update={"fonts": fonts.fonts}), self.sound, self.cache)
        found = list(_notes(played, self.settings.notes, self.seed))
        waves, labels, sources = (tuple(column) for column in zip(*found, strict=True))
        right = tuple((label,) for label in labels)
        rate = self.sound.sample_rate
        rooms = tuple(augment(wave, rate, default_rng([self.seed, number])) for number, wave in enumerate(waves))
        return [Group(name, waves, right, sources), Group(f"{name}, in rooms", rooms, right, sources)]

    def _load_samples(self, package: SamplePackage) -> Group:
        folder = obtain(package.package, self.cache) / package.folder
        labels = list(self.data.instruments)
        waves, right, sources = [], [], []
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            row = next((row for row in package.recordings if any(fnmatchcase(name, pattern) for pattern in row.files)), None)
            if row is None or not file.is_file():
                continue
            try:
                waves.append(read_sound(file, self.sound.sample_rate, _MAX_DURATION_S).numpy())
            except UnreadableSample as error:
                raise DataError(str(error)) from error
            right.append(tuple(labels.index(label) for label in row.right))
            sources.append(name)
        if not waves:
            raise DataError(f"{folder}: no file has one of the names that release.quality gives for {package.name}")
        return Group(package.name, tuple(waves), tuple(right), tuple(sources))

    def logistic(self) -> LogisticFeatures:
        """Fit the baseline; its regularisation is chosen on the validation sounds. Raises DataError."""
        played, hearing = self.data.open(SamplePreparation(sound=self.sound, cache=self.cache)), self.hearing
        waves, labels = [], []
        for number in range(self.settings.baseline_sounds):
            label = number % len(played.labels)
            try:
                waves.append(played.draw_sound(label, default_rng([self.seed, 1, number])))
            except UnreadableSample:
                continue
            labels.append(label)
        features, validation = hearing.features(waves), self.validation()
        validation_features = np.concatenate([hearing.features(group.waves) for group in validation])
        validation_labels = np.array([right[0] for group in validation for right in group.right])
        return LogisticFeatures(features, np.array(labels), validation_features, validation_labels, _STRENGTHS)


def prepare_evaluation(settings: SoundsQuality, data: Any, sound: Sound | None, seed: int, cache: Path) -> SoundEvaluation:
    """Check a recipe and return its evaluation. Raises RecipeError."""
    if not isinstance(data, InstrumentNotes) or sound is None:
        raise RecipeError("release.quality: kind sounds is for data of kind notes, and a recipe with sound")
    for recorded_by in settings.recorded:
        unknown = sorted({label for row in recorded_by.recordings for label in row.right} - set(data.instruments))
        if unknown:
            raise RecipeError(f"release.quality: {recorded_by.name}: {', '.join(unknown)}: no instrument has this name")
    return SoundEvaluation(settings, data, sound, seed, cache)


def require_audio_network(network: nn.Module) -> MAViL:
    """Check the network. Raises RecipeError."""
    if not isinstance(network, MAViL) or network.config.fusion_depth or network.config.multi_label:
        raise RecipeError("release.quality: kind sounds is for a MAViL without fusion whose labels exclude each other")
    return network


def temperature(task: SoundEvaluation, network: MAViL) -> float:
    """Return the temperature that fits the network's logits to the validation sounds best. Raises DataError."""
    groups = task.validation()
    logits = np.concatenate([task.hearing.logits(network, group.waves) for group in groups])
    return metrics.fit_temperature(logits, np.array([right[0] for group in groups for right in group.right]))


def evaluate(task: SoundEvaluation, network: MAViL, split: DataSplit) -> dict[str, Any]:
    """Evaluate a split. Raises DataError."""
    groups = task.test() if split is DataSplit.TEST else task.validation()
    hearing, rival = task.hearing, task.logistic()
    return {
        "split": split.value,
        "groups": [_row(group, hearing.logits(network, group.waves), rival.predict(hearing.features(group.waves))) for group in groups],
        "ladder": _ladder(task, network, groups[0]),
    }


def _notes(played: RenderedNotes, count: int, seed: int) -> Iterator[tuple[Wave, int, str]]:
    """Render `count` notes of each class with voices, evenly over these. Raises DataError."""
    for label, voices in enumerate(played.voices):
        for number in range(count if voices else 0):
            voice = voices[number % len(voices)]
            try:
                wave = played.note(voice, default_rng([seed, label, number]))
            except UnreadableSample as error:
                raise DataError(f"{error}; keep the keys of {played.labels[label]} to those that it has") from error
            yield wave, label, f"drum {voice.keys[0]}" if voice.is_drum else f"{voice.font} {voice.preset}"


def _row(group: Group, logits: Float32Array, rival: npt.NDArray[np.int64]) -> dict[str, Any]:
    right, rival_right = group.hits(logits.argmax(axis=1)), group.hits(rival)
    top5 = np.any([group.hits(column) for column in np.argsort(-logits, axis=1)[:, :5].T], axis=0)
    return {
        "name": group.name,
        "top1": metrics.cluster_mean(right, group.sources).to_json(),
        "top5": metrics.cluster_mean(top5, group.sources).to_json(),
        "sources": len(set(group.sources)),
        "baselines": {
            LOGISTIC: {
                "accuracy": metrics.cluster_mean(rival_right, group.sources).to_json(),
                "gain": metrics.cluster_mean(right.astype(np.float64) - rival_right, group.sources).to_json(),
            }
        },
    }


def _ladder(task: SoundEvaluation, network: MAViL, group: Group) -> list[dict[str, Any]]:
    schedules = {name: MergeSchedule.constant(r) for name, r in task.settings.rungs.items()}
    config, batch = network.config, task.settings.batch_size
    audio = torch.rand(batch, 1, config.audio_frames, config.mel_bins)
    speed = metrics.relative_speed(lambda schedule: network.forward_audio(audio, merge=schedule), schedules, rounds=task.settings.rounds)
    rows = []
    for name, schedule in schedules.items():
        right = group.hits(task.hearing.logits(network, group.waves, schedule).argmax(axis=1))
        measured: MeanWithError = metrics.cluster_mean(right, group.sources)
        tokens = schedule.token_counts(config.audio_patches + 1, config.depth, protected=1)[-1]
        row = {"rung": name, "r": task.settings.rungs[name], "tokens_out": tokens, "throughput": round(speed[name], 3)}
        rows.append(row | {"accuracy": measured.to_json()})
    return rows
