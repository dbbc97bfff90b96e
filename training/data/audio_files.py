"""Sound files → log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from models.bundle_schema import Sound
from models.media.fbank import FbankConfig
from models.systems.mavil.preprocessing import spectrogram
from models.systems.mavil.system import LogMelStats
from training.data.decode import SOUNDS, VIDEOS, read_sound
from training.data.labelled_files import LabelledFiles, find
from training.data.source import DataSettings, Sample, SamplePreparation

_HOP_S = 0.01
"""Time between frames of a spectrogram."""


class SoundFilesSettings(DataSettings):
    kind: Literal["sound"] = "sound"
    path: Path
    """A folder of wav, flac or other sound files, or of videos for their sound: one subfolder for each class, or `labels.jsonl`."""
    labelled: bool = True

    def open(self, preparation: SamplePreparation) -> Sounds:
        return Sounds(find(self.path, SOUNDS | VIDEOS, labelled=self.labelled), preparation.require_sound())


@dataclass(frozen=True)
class Sounds:
    found: LabelledFiles
    sound: Sound
    unit: str = "sounds"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.found.labels

    def __len__(self) -> int:
        return len(self.found.files)

    def identity(self) -> Mapping[str, Any]:
        return self.found.identity()

    def sample(self, index: int, draw: int) -> Sample:
        return {"spectrogram": load_spectrogram(self.found.files[index], self.sound), **self.found.target(index)}


def load_spectrogram(file: Path, sound: Sound, start: float = 0.0) -> Tensor:
    """Read a normalised spectrogram (1, frames, mel bins) from `start` seconds on, cut or padded at the end.

    Raises UnreadableSample.
    """
    waveform = read_sound(file, sound.sample_rate, sound.frames * _HOP_S + 0.1, start)
    bank = FbankConfig(sample_rate=sound.sample_rate, mel_bins=sound.mel_bins, high_hz=sound.sample_rate / 2)
    return spectrogram(waveform, sound.frames, LogMelStats(sound.mean, sound.std), bank)
