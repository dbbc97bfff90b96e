"""Notes of sampled instruments: recordings of single notes, each of which is played at the keys next to its own.

A package has either the files of one instrument, whose names tell the keys (`C4.mp3`, `As3.mp3`, `F#2v10.mp3`; C4 is middle C), or GUS
patches of General MIDI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Tag, field_validator
from scipy.signal import resample

from starters.data.sounds.gus_patches import read_patch
from starters.data.sounds.soundfonts import KITS, Font, Note, Presets, Synth, Wave, numbered, open_font
from training.data.decode import read_sound
from training.data.packages import LicensedPackage, PyPIPackage, obtain
from training.data.source import Unreadable
from training.errors import DataError

_NAME = re.compile(r"([A-G])([s#b]?)(\d)(?: ?v\d+)?")
"""Name of a file without its ending: a key, and a velocity."""
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ALTERED = {"": 0, "s": 1, "#": 1, "b": -1}
_BEYOND, _BETWEEN = 3, 4
"""Semitones by which a recording is shifted at most: beyond the lowest and highest one, and between two."""
_LONGEST_S = 4.0
"""Part of a recording that is kept."""
_FINER = 2
"""Recordings are kept at so many times the sample rate, since linear interpolation takes the highs otherwise."""
_RELEASE_S = 0.1
"""Time in which a note falls to 1 / e after its end."""


class Sampled(LicensedPackage, Presets):
    """Recordings in a package, and the preset of General MIDI that they are played as."""

    folder: str
    preset: str | None = None
    """Preset that the files of the folder are recordings of. None: its folders Tone_000 and Drum_000 have patches, by number."""

    @field_validator("preset")
    @classmethod
    def _preset(cls, value: str | None) -> str | None:
        if value is not None and numbered(value)[0] == KITS:
            raise ValueError(f"{value}: is a kit, whose keys are no pitches")
        return value


def _kind(value: Any) -> str:
    sampled = isinstance(value, Sampled) or (isinstance(value, Mapping) and "package" not in value)
    return "recordings" if sampled else "font"


Instruments = Annotated[Annotated[Font, Tag("font")] | Annotated[Sampled, Tag("recordings")], Discriminator(_kind)]
"""Instruments of one maker: a SoundFont, which names a `package`, or recordings, which name an `npm`, `pypi` or `debian` package."""


@dataclass(frozen=True)
class Recording:
    key: float
    """At which it is played as it was recorded."""
    wave: Wave
    rate: float
    loop: tuple[float, float] | None = None
    """Begin and end, in samples, of what is repeated as long as a note is held."""


@dataclass(frozen=True)
class Preset:
    keys: Sequence[int]
    read: Callable[[], tuple[Recording, ...]]
    """Decodes the recordings, once. Raises DataError."""


class Sampler:
    """Plays recordings with the face of a `Synth`. Presets are decoded when they are first played."""

    def __init__(self, sample_rate: int, presets: Mapping[str, Preset]) -> None:
        self._rate, self._presets = sample_rate, presets

    def keys(self, preset: str) -> Sequence[int]:
        """Those that it can play, ascending; none where it lacks the preset."""
        found = self._presets.get(preset)
        return found.keys if found else ()

    def play(self, preset: str, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        """Return so many samples of the notes, a function of the arguments alone. tuning: semitones by which recordings are shifted."""
        recordings, is_kit = self._presets[preset].read(), numbered(preset)[0] == KITS
        wave = np.zeros(samples, np.float32)
        for note in notes:
            if note.begin < samples:
                nearest = min(recordings, key=lambda recording: abs(recording.key - note.key))
                shift = tuning + note.key - nearest.key
                sound = self._shifted(nearest, shift, samples - note.begin)
                if not is_kit:
                    over = np.maximum(np.arange(len(sound), dtype=np.float32) - (note.end - note.begin), 0)
                    sound = sound * np.exp(-over / np.float32(_RELEASE_S * self._rate))
                wave[note.begin :] += sound * np.float32(note.velocity**2)
        return wave

    def _shifted(self, recording: Recording, semitones: float, samples: int) -> Wave:
        """The begin of a recording, played faster or slower; silence after its end."""
        at = np.arange(samples) * (recording.rate / self._rate * 2 ** (semitones / 12))
        if recording.loop is not None:
            begin, end = recording.loop
            at = np.where(at < end, at, begin + (at - begin) % (end - begin))
        at = at[at < len(recording.wave) - 1]
        first = at.astype(np.int64)
        part = (at - first).astype(np.float32)
        played = recording.wave[first] * (1 - part) + recording.wave[first + 1] * part
        return np.pad(played, (0, samples - len(played)))


def open_instruments(asked: Instruments, renderer: PyPIPackage, sample_rate: int, cache_folder: Path) -> Synth | Sampler:
    """The same object for the same instruments: reading them takes seconds. Raises DataError."""
    if isinstance(asked, Font):
        return open_font(asked, renderer, sample_rate, cache_folder)
    folder = obtain(asked.package, cache_folder) / asked.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: the package has no such folder")
    return _opened(folder, asked.preset, sample_rate)


@cache
def _opened(folder: Path, preset: str | None, sample_rate: int) -> Sampler:
    return Sampler(sample_rate, _patches(folder, sample_rate) if preset is None else {preset: _files(folder, sample_rate)})


def key_named(name: str) -> int | None:
    """Return the key that a file's name without its ending tells: 60 of `C4`. None where it tells none."""
    found = _NAME.fullmatch(name)
    return 12 * (int(found[3]) + 1) + _STEPS[found[1]] + _ALTERED[found[2]] if found else None


def _files(folder: Path, sample_rate: int) -> Preset:
    """Raises DataError."""
    named = {file: key for file in sorted(folder.iterdir()) if file.is_file() and (key := key_named(file.stem)) is not None}
    if not named:
        raise DataError(f"{folder}: no file is named after a key, such as C4.mp3")
    recorded = sorted(named.values())
    asked = range(recorded[0] - _BEYOND, recorded[-1] + _BEYOND + 1)

    @cache
    def read() -> tuple[Recording, ...]:
        return tuple(_decoded(file, key, sample_rate) for file, key in named.items())

    return Preset([key for key in asked if min(abs(key - other) for other in recorded) <= _BETWEEN], read)


def _decoded(file: Path, key: int, sample_rate: int) -> Recording:
    try:
        wave = read_sound(file, sample_rate, _LONGEST_S).numpy()
    except Unreadable as error:
        raise DataError(str(error)) from error
    return Recording(key, resample(wave, _FINER * len(wave)), _FINER * sample_rate)


def _patches(folder: Path, sample_rate: int) -> dict[str, Preset]:
    """Raises DataError."""
    tones, drums = (
        {int(file.name[:3]): file for file in sorted((folder / name).glob("[0-9][0-9][0-9]_*.pat"))} for name in ("Tone_000", "Drum_000")
    )
    if not tones and not drums:
        raise DataError(f"{folder}: there are no patches in its folders Tone_000 and Drum_000; other recordings need a preset")
    presets = {f"0:{program}": Preset(range(128), _reader([(file, None)], sample_rate)) for program, file in tones.items()}
    if drums:
        presets[f"{KITS}:0"] = Preset(sorted(drums), _reader([(file, key) for key, file in drums.items()], sample_rate))
    return presets


def _reader(files: Sequence[tuple[Path, int | None]], sample_rate: int) -> Callable[[], tuple[Recording, ...]]:
    """Reader of patches, with the keys of those that are drums: a drum sounds at its key as it was recorded."""

    @cache
    def read() -> tuple[Recording, ...]:
        return tuple(recording for file, drum in files for recording in _of_patch(file, drum, sample_rate))

    return read


def _of_patch(file: Path, drum: int | None, sample_rate: int) -> list[Recording]:
    """Raises DataError."""
    found = []
    for sample in read_patch(file):
        heard = max(1, round(len(sample.wave) * sample_rate / sample.rate))
        wave = resample(resample(sample.wave, heard), _FINER * heard)  # without what is too high for the sample rate
        longer = len(wave) / len(sample.wave)
        begin, end = (at * longer for at in sample.loop or (0, 0))
        loop = (begin, min(end, len(wave) - 1.0)) if sample.loop and drum is None else None
        found.append(Recording(sample.key if drum is None else drum, wave.astype(np.float32), sample.rate * longer, loop))
    return found
