"""Sounds of instruments and drums, played on SoundFonts and on recordings of single notes: a class is an instrument, and no sound is
played twice alike.

A note takes a fifth of a millisecond to play, so nothing is kept on disk but the packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.random import Generator, default_rng
from pydantic import Field, model_validator

from models.bundle_schema import Sound
from models.media.fbank import FbankConfig
from models.systems.mavil.log_mel_stats import LogMelStats
from models.systems.mavil.preprocessing import spectrogram
from starters.data.sounds.audio_augmentation import Acoustics, onset, recorded
from starters.data.sounds.sampled_instruments import Instruments, Sampler, open_instruments
from starters.data.sounds.soundfonts import KITS, Note, Synth, Wave, numbered
from training.data.packages import PyPIPackage
from training.data.source import DataSettings, Preparation, Sample, Unreadable
from training.errors import DataError
from training.recipe_settings import Settings

_AUDIBLE = 1e-3
"""Least peak of what is played."""
_SHORTEST_S = 0.1
_TRIES = 20


class Instrument(Settings):
    """One class: presets that are played in a range of keys, or keys of drum kits."""

    presets: list[str] = Field(default_factory=list)
    keys: tuple[int, int] = (36, 84)
    """Lowest and highest."""
    drums: list[int] = Field(default_factory=list)
    """Keys of every kit, by General MIDI's percussion map."""

    @model_validator(mode="after")
    def _plays_something(self) -> Self:
        for preset in self.presets:
            numbered(preset)
        if not self.presets and not self.drums:
            raise ValueError("presets, drums: give one of them")
        low, high = self.keys
        if not all(0 <= key <= 127 for key in (low, high, *self.drums)) or low > high:
            raise ValueError("keys, drums: are from 0 to 127, and keys ascend")
        return self


class Notes(DataSettings):
    kind: Literal["notes"] = "notes"
    renderer: PyPIPackage
    """tinysoundfont."""
    fonts: list[Instruments] = Field(min_length=1)
    """A class draws from each of those that have it equally often."""
    instruments: dict[str, Instrument] = Field(min_length=2)
    """By label, in the order of the classes."""
    kits: list[str] = Field(default_factory=list)
    """Presets of drum kits whose keys follow General MIDI."""
    acoustics: Acoustics = Acoustics()
    samples: int = Field(gt=0)
    """Samples of an epoch, evenly over the classes."""

    @model_validator(mode="after")
    def _kits_are_kits(self) -> Self:
        wrong = [kit for kit in self.kits if numbered(kit)[0] != KITS]
        if wrong:
            raise ValueError(f"kits: {', '.join(wrong)}: kits are in bank {KITS}")
        return self

    def open(self, preparation: Preparation) -> Played:
        """Raises DataError where no font has a class."""
        played = open_some(self, preparation.sound, preparation.cache)
        missing = [label for label, voices in zip(played.labels, played.voices, strict=True) if not voices]
        if missing:
            raise DataError(f"data.instruments: the fonts have no preset of {', '.join(missing)}")
        return played


@dataclass(frozen=True)
class Voice:
    """A preset, and the keys in which it is an instrument of a class."""

    font: int
    preset: str
    keys: tuple[int, ...]
    """Ascending."""

    @property
    def is_drum(self) -> bool:
        return numbered(self.preset)[0] == KITS

    def nearest(self, key: int) -> int:
        return min(self.keys, key=lambda own: abs(own - key))


@dataclass(frozen=True)
class Played:
    """Sounds by class and number."""

    settings: Notes
    sound: Sound
    synths: tuple[Synth | Sampler, ...]
    voices: tuple[tuple[Voice, ...], ...]
    """Voices of each class; a class may have none where sounds are evaluated alone."""
    unit: str = "sounds"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings.instruments)

    @property
    def samples(self) -> int:
        """Those that the frames of one spectrogram cover."""
        return (self.sound.frames - 1) * self.bank.hop + self.bank.window

    @property
    def bank(self) -> FbankConfig:
        rate = self.sound.sample_rate
        return FbankConfig(sample_rate=rate, mel_bins=self.sound.mel_bins, high_hz=rate / 2)

    def __len__(self) -> int:
        return self.settings.samples

    def identity(self) -> Mapping[str, Any]:
        return {"fonts": [font.package.sha256 for font in self.settings.fonts], "renderer": self.settings.renderer.sha256}

    def sample(self, index: int, draw: int) -> Sample:
        label = index % len(self.voices)
        wave = torch.from_numpy(self.heard(label, default_rng(draw)))
        return {
            "spectrogram": spectrogram(wave, self.sound.frames, LogMelStats(self.sound.mean, self.sound.std), self.bank),
            "label": torch.tensor(label),
        }

    def heard(self, label: int, generator: Generator) -> Wave:
        """A sound of a class as somebody might have recorded it, at most as long as a spectrogram. Raises Unreadable."""
        rate, voice = self.sound.sample_rate, self.voice(label, generator)
        late = int(generator.exponential(0.7) * rate) if generator.random() < 0.2 and not voice.is_drum else 0
        wave = self._phrase(voice, self.samples + late, generator)
        if float(np.abs(wave[late:]).max()) < _AUDIBLE:  # it has died away by then
            late = 0
        wave = wave[late : late + self.samples]
        begin = onset(wave)
        if generator.random() < 0.15:
            wave = self._beside(wave, generator)
        wave = recorded(wave, rate, generator, self.settings.acoustics)
        if generator.random() < 0.4:  # a file that ends earlier
            shortest = int(_SHORTEST_S * rate)
            heard = generator.uniform(np.log(shortest), np.log(max(shortest + 1, len(wave) - begin)))
            wave = wave[: begin + int(np.exp(heard))]
        return wave

    def voice(self, label: int, generator: Generator) -> Voice:
        """One of a class, after its maker."""
        voices = self.voices[label]
        makers = sorted({voice.font for voice in voices})
        if len(makers) > 1:
            maker = makers[int(generator.integers(len(makers)))]
            voices = tuple(voice for voice in voices if voice.font == maker)
        return voices[int(generator.integers(len(voices)))]

    def note(self, voice: Voice, generator: Generator) -> Wave:
        """One note from its begin on, as the font plays it, at half of full scale. Keys that are silent there are drawn again.

        Raises Unreadable."""
        for _ in range(_TRIES):
            key = voice.keys[int(generator.integers(len(voice.keys)))]
            held = int(generator.uniform(0.3, 1.5) * self.sound.sample_rate)
            with suppress(Unreadable):
                wave = self._play(voice, [Note(key, float(generator.uniform(0.4, 1.0)), 0, held)], self.samples)
                return wave * np.float32(0.5 / np.abs(wave).max())
        raise Unreadable(f"{self._named(voice)} is silent from {voice.keys[0]} to {voice.keys[-1]}")

    def _phrase(self, voice: Voice, samples: int, generator: Generator) -> Wave:
        """Mostly one note; else a chord, or several notes one after another."""
        rate, shape = self.sound.sample_rate, float(generator.random())
        count = 1 if shape < 0.65 else int(generator.integers(2, 5))
        begin = int(generator.exponential(0.05) * rate) if generator.random() < 0.7 else int(generator.uniform(0, 0.8) * rate)
        key, velocity = voice.keys[int(generator.integers(len(voice.keys)))], float(generator.uniform(0.25, 1.0))
        notes = []
        for _ in range(count):
            held = max(1, int(np.exp(generator.uniform(np.log(0.08), np.log(2.5))) * rate))
            notes.append(Note(key, velocity, begin, begin + held))
            if shape >= 0.8 or voice.is_drum:
                begin += max(int(0.08 * rate), int(held * generator.uniform(0.5, 1.2)))
            key = voice.nearest(key + int(generator.integers(-7, 8)))
            velocity = float(np.clip(velocity + generator.normal(0, 0.1), 0.15, 1.0))
        bend = 1.5 if generator.random() < 0.5 else 0.15  # another size of the instrument, or another tuning
        return self._play(voice, [note for note in notes if note.begin < samples], samples, float(generator.normal(0, bend)))

    def _beside(self, wave: Wave, generator: Generator) -> Wave:
        """The same with another instrument, quieter, behind it."""
        other = self._phrase(self.voice(int(generator.integers(len(self.voices))), generator), len(wave), generator)
        louder = float(np.abs(wave).max()) / float(np.abs(other).max())
        return wave + other * np.float32(louder * 10 ** (generator.uniform(-30, -10) / 20))

    def _play(self, voice: Voice, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        wave = self.synths[voice.font].play(voice.preset, notes, samples, tuning)
        if float(np.abs(wave).max(initial=0.0)) < _AUDIBLE:
            keys = ", ".join(str(note.key) for note in notes)
            raise Unreadable(f"{self._named(voice)} is silent at {keys or 'no key'}")
        return wave

    def _named(self, voice: Voice) -> str:
        return f"{self.settings.fonts[voice.font].package.name}: preset {voice.preset}"


def open_some(settings: Notes, sound: Sound | None, cache: Path) -> Played:
    """The same where classes may be without voices. Raises DataError."""
    if sound is None:
        raise DataError("sound: the recipe does not say how sound becomes a spectrogram (frames, mel_bins, mean, std)")
    synths = tuple(open_instruments(font, settings.renderer, sound.sample_rate, cache) for font in settings.fonts)
    voices = tuple(tuple(_voices(instrument, settings, synths)) for instrument in settings.instruments.values())
    return Played(settings, sound, synths, voices)


def _voices(instrument: Instrument, settings: Notes, synths: Sequence[Synth | Sampler]) -> list[Voice]:
    low, high = instrument.keys
    asked = [(preset, range(low, high + 1)) for preset in instrument.presets]
    asked += [(kit, range(key, key + 1)) for kit in settings.kits for key in instrument.drums]
    found = [
        Voice(number, preset, tuple(key for key in synth.keys(preset) if key in keys))
        for number, (font, synth) in enumerate(zip(settings.fonts, synths, strict=True))
        for preset, keys in asked
        if font.plays(preset)
    ]
    return [voice for voice in found if voice.keys]
