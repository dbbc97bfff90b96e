"""Sounds of instruments and drums, rendered from SoundFonts and recordings of single notes; a class is an instrument.

Rendering a note takes 0.2 ms, so only the packages are cached.
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
from models.systems.mavil.preprocessing import spectrogram
from models.systems.mavil.system import LogMelStats
from starters.data.sounds.audio_augmentation import Acoustics, augment, onset
from starters.data.sounds.sampled_instruments import Instruments, RecordingPlayer, open_instruments
from starters.data.sounds.soundfonts import KITS, Note, Synth, Wave, parse_preset
from training.data.packages import PyPIPackage
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError
from training.recipe_settings import RecipeSettings

_AUDIBLE = 1e-3
"""Minimum peak of a rendered sound."""
_MIN_DURATION_S = 0.1
_TRIES = 20


class Instrument(RecipeSettings):
    """Sounds of one class: presets with a range of keys, or keys of drum kits."""

    presets: list[str] = Field(default_factory=list)
    keys: tuple[int, int] = (36, 84)
    """Lowest and highest."""
    drums: list[int] = Field(default_factory=list)
    """Keys of every kit, as in General MIDI's percussion map."""

    @model_validator(mode="after")
    def _plays_something(self) -> Self:
        for preset in self.presets:
            parse_preset(preset)
        if not self.presets and not self.drums:
            raise ValueError("presets, drums: give one of them")
        low, high = self.keys
        if not all(0 <= key <= 127 for key in (low, high, *self.drums)) or low > high:
            raise ValueError("keys, drums: are from 0 to 127, and keys ascend")
        return self


class InstrumentNotes(DataSettings):
    kind: Literal["notes"] = "notes"
    renderer: PyPIPackage
    """tinysoundfont."""
    fonts: list[Instruments] = Field(min_length=1)
    """Fonts; a class uses those that have it equally often."""
    instruments: dict[str, Instrument] = Field(min_length=2)
    """Instruments by label, in the order of the classes."""
    kits: list[str] = Field(default_factory=list)
    """Presets of drum kits whose keys follow General MIDI."""
    acoustics: Acoustics = Acoustics()
    samples: int = Field(gt=0)
    """Samples of an epoch, evenly over the classes."""

    @model_validator(mode="after")
    def _kits_are_kits(self) -> Self:
        wrong = [kit for kit in self.kits if parse_preset(kit)[0] != KITS]
        if wrong:
            raise ValueError(f"kits: {', '.join(wrong)}: kits are in bank {KITS}")
        return self

    def open(self, preparation: SamplePreparation) -> RenderedNotes:
        """Open the fonts. Raises DataError if none has a class."""
        played = open_some(self, preparation.sound, preparation.cache)
        missing = [label for label, voices in zip(played.labels, played.voices, strict=True) if not voices]
        if missing:
            raise DataError(f"data.instruments: the fonts have no preset of {', '.join(missing)}")
        return played


@dataclass(frozen=True)
class Voice:
    """Preset with the keys in which it belongs to a class."""

    font: int
    preset: str
    keys: tuple[int, ...]
    """Ascending."""

    @property
    def is_drum(self) -> bool:
        return parse_preset(self.preset)[0] == KITS

    def nearest(self, key: int) -> int:
        return min(self.keys, key=lambda voice_key: abs(voice_key - key))


@dataclass(frozen=True)
class RenderedNotes:
    """Source of sounds by class and number."""

    settings: InstrumentNotes
    sound: Sound
    synths: tuple[Synth | RecordingPlayer, ...]
    voices: tuple[tuple[Voice, ...], ...]
    """Voices of each class; in evaluation a class may have none."""
    unit: str = "sounds"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings.instruments)

    @property
    def samples(self) -> int:
        """Number of samples that one spectrogram covers."""
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
        wave = torch.from_numpy(self.draw_sound(label, default_rng(draw)))
        return {
            "spectrogram": spectrogram(wave, self.sound.frames, LogMelStats(self.sound.mean, self.sound.std), self.bank),
            "label": torch.tensor(label),
        }

    def draw_sound(self, label: int, generator: Generator) -> Wave:
        """Draw an augmented sound of a class, at most as long as a spectrogram. Raises UnreadableSample."""
        rate, voice = self.sound.sample_rate, self.voice(label, generator)
        late = int(generator.exponential(0.7) * rate) if generator.random() < 0.2 and not voice.is_drum else 0
        wave = self._phrase(voice, self.samples + late, generator)
        if float(np.abs(wave[late:]).max()) < _AUDIBLE:  # it has decayed by then
            late = 0
        wave = wave[late : late + self.samples]
        start = onset(wave)
        if generator.random() < 0.15:
            wave = self._add_second_instrument(wave, generator)
        wave = augment(wave, rate, generator, self.settings.acoustics)
        if generator.random() < 0.4:  # shorter file
            shortest = int(_MIN_DURATION_S * rate)
            duration = generator.uniform(np.log(shortest), np.log(max(shortest + 1, len(wave) - start)))
            wave = wave[: start + int(np.exp(duration))]
        return wave

    def voice(self, label: int, generator: Generator) -> Voice:
        """Draw a maker, then a voice of a class."""
        voices = self.voices[label]
        makers = sorted({voice.font for voice in voices})
        if len(makers) > 1:
            maker = makers[int(generator.integers(len(makers)))]
            voices = tuple(voice for voice in voices if voice.font == maker)
        return voices[int(generator.integers(len(voices)))]

    def note(self, voice: Voice, generator: Generator) -> Wave:
        """Render one note from its start, at half of full scale; draw another key if it is silent. Raises UnreadableSample."""
        for _ in range(_TRIES):
            key = voice.keys[int(generator.integers(len(voice.keys)))]
            length = int(generator.uniform(0.3, 1.5) * self.sound.sample_rate)
            with suppress(UnreadableSample):
                wave = self._play(voice, [Note(key, float(generator.uniform(0.4, 1.0)), 0, length)], self.samples)
                return wave * np.float32(0.5 / np.abs(wave).max())
        raise UnreadableSample(f"{self._describe(voice)} is silent from {voice.keys[0]} to {voice.keys[-1]}")

    def _phrase(self, voice: Voice, samples: int, generator: Generator) -> Wave:
        """Render mostly one note, else a chord or several notes in sequence."""
        rate, shape = self.sound.sample_rate, float(generator.random())
        count = 1 if shape < 0.65 else int(generator.integers(2, 5))
        start = int(generator.exponential(0.05) * rate) if generator.random() < 0.7 else int(generator.uniform(0, 0.8) * rate)
        key, velocity = voice.keys[int(generator.integers(len(voice.keys)))], float(generator.uniform(0.25, 1.0))
        notes = []
        for _ in range(count):
            length = max(1, int(np.exp(generator.uniform(np.log(0.08), np.log(2.5))) * rate))
            notes.append(Note(key, velocity, start, start + length))
            if shape >= 0.8 or voice.is_drum:
                start += max(int(0.08 * rate), int(length * generator.uniform(0.5, 1.2)))
            key = voice.nearest(key + int(generator.integers(-7, 8)))
            velocity = float(np.clip(velocity + generator.normal(0, 0.1), 0.15, 1.0))
        bend = 1.5 if generator.random() < 0.5 else 0.15  # another size of the instrument, or another tuning
        return self._play(voice, [note for note in notes if note.start < samples], samples, float(generator.normal(0, bend)))

    def _add_second_instrument(self, wave: Wave, generator: Generator) -> Wave:
        """Mix a quieter second instrument into a sound."""
        other = self._phrase(self.voice(int(generator.integers(len(self.voices))), generator), len(wave), generator)
        louder = float(np.abs(wave).max()) / float(np.abs(other).max())
        return wave + other * np.float32(louder * 10 ** (generator.uniform(-30, -10) / 20))

    def _play(self, voice: Voice, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        wave = self.synths[voice.font].play(voice.preset, notes, samples, tuning)
        if float(np.abs(wave).max(initial=0.0)) < _AUDIBLE:
            keys = ", ".join(str(note.key) for note in notes)
            raise UnreadableSample(f"{self._describe(voice)} is silent at {keys or 'no key'}")
        return wave

    def _describe(self, voice: Voice) -> str:
        return f"{self.settings.fonts[voice.font].package.name}: preset {voice.preset}"


def open_some(settings: InstrumentNotes, sound: Sound | None, cache: Path) -> RenderedNotes:
    """Open the fonts; classes may have no voices. Raises DataError."""
    if sound is None:
        raise DataError("sound: the recipe does not say how sound becomes a spectrogram (frames, mel_bins, mean, std)")
    synths = tuple(open_instruments(font, settings.renderer, sound.sample_rate, cache) for font in settings.fonts)
    voices = tuple(tuple(_voices(instrument, settings, synths)) for instrument in settings.instruments.values())
    return RenderedNotes(settings, sound, synths, voices)


def _voices(instrument: Instrument, settings: InstrumentNotes, synths: Sequence[Synth | RecordingPlayer]) -> list[Voice]:
    low, high = instrument.keys
    presets = [(preset, range(low, high + 1)) for preset in instrument.presets]
    presets += [(kit, range(key, key + 1)) for kit in settings.kits for key in instrument.drums]
    found = [
        Voice(number, preset, tuple(key for key in synth.keys(preset) if key in keys))
        for number, (font, synth) in enumerate(zip(settings.fonts, synths, strict=True))
        for preset, keys in presets
        if font.plays(preset)
    ]
    return [voice for voice in found if voice.keys]
