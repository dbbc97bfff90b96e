"""Notes of SoundFonts, as `tinysoundfont` plays them: files of recorded instruments by General MIDI's numbers.

Only the compiled part of that package is used, out of its wheel: the rest wants a sound card.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from training.data.packages import DebianPackage, PyPIPackage, obtain
from training.errors import DataError
from training.recipe_settings import Settings

KITS = 128
"""Bank of drum kits: each key is another drum."""
_EXTENSION = "_tinysoundfont"
_FADING_S = 0.05
"""Time in which the renderer lets notes that are stopped at once die away, and more."""

Wave = NDArray[np.float32]
"""Mono, (samples,)."""


class Presets(Settings):
    """Which presets are played. A preset is `BANK:PROGRAM`."""

    only: list[str] | None = None
    """Presets; None: all that the instruments ask for and that are there."""
    without: list[str] = Field(default_factory=list)
    """Presets that are left out."""

    @field_validator("only", "without")
    @classmethod
    def _presets(cls, value: list[str] | None) -> list[str] | None:
        for preset in value or ():
            numbered(preset)
        return value

    def plays(self, preset: str) -> bool:
        return preset not in self.without and (self.only is None or preset in self.only)


class Font(Presets):
    """A SoundFont inside a package."""

    package: DebianPackage
    file: str
    license: str


@dataclass(frozen=True)
class Note:
    """Times are in samples; velocity is from 0 to 1."""

    key: int
    velocity: float
    begin: int
    end: int


class Synth:
    """One font at one sample rate. It is for one thread."""

    def __init__(self, extension: ModuleType, file: Path, sample_rate: int) -> None:
        """Raises DataError."""
        try:
            self._font = extension.SoundFont(str(file))
        except RuntimeError as error:
            raise DataError(f"{file}: cannot be read as a SoundFont ({error})") from error
        self._font.set_output(extension.OutputMode.Mono, sample_rate, 0.0)
        self._fading = int(_FADING_S * sample_rate)

    def keys(self, preset: str) -> Sequence[int]:
        """Those that it can play, ascending; none where the font lacks the preset. Some may be silent."""
        return range(128) if self._index(preset) >= 0 else ()

    def play(self, preset: str, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        """Return so many samples of the notes, a function of the arguments alone. tuning: semitones by which recordings are shifted."""
        font = self._font
        font.reset()
        font.render(np.zeros(self._fading, np.float32).data.cast("B"))  # what was played before
        font.channel_set_preset_index(0, self._index(preset))
        font.channel_set_tuning(0, tuning)
        events = sorted({note.begin for note in notes} | {note.end for note in notes} | {0, samples})
        wave = np.zeros(samples, np.float32)
        for begin, end in pairwise(events):
            for note in notes:
                if note.end == begin:
                    font.channel_note_off(0, note.key)
            for note in notes:
                if note.begin == begin:
                    font.channel_note_on(0, note.key, note.velocity)
            if begin < samples:
                part = np.zeros(min(end, samples) - begin, np.float32)
                font.render(part.data.cast("B"))
                wave[begin:end] = part
        return wave

    def _index(self, preset: str) -> int:
        """A negative number where the font has no such preset."""
        return int(self._font.get_preset_index(*numbered(preset)))


def numbered(preset: str) -> tuple[int, int]:
    """Return bank and program of `BANK:PROGRAM`. Raises ValueError."""
    bank, colon, program = preset.partition(":")
    if not colon or not bank.isdecimal() or not program.isdecimal() or int(bank) > KITS or int(program) > 127:
        raise ValueError(f"{preset!r} is no preset; write BANK:PROGRAM, such as 0:40")
    return int(bank), int(program)


def open_font(font: Font, renderer: PyPIPackage, sample_rate: int, cache_folder: Path) -> Synth:
    """The same synth for the same font: reading one takes seconds. Raises DataError."""
    file = obtain(font.package, cache_folder) / font.file
    if not file.is_file():
        raise DataError(f"{file}: the package has no such file")
    return _opened(obtain(renderer, cache_folder), file, sample_rate)


@cache
def _opened(renderer: Path, file: Path, sample_rate: int) -> Synth:
    return Synth(extension_in(renderer), file, sample_rate)


def extension_in(folder: Path) -> ModuleType:
    """The compiled part of tinysoundfont below an unpacked wheel; a process loads it once. Raises DataError."""
    found = [folder / "tinysoundfont" / f"{_EXTENSION}{suffix}" for suffix in EXTENSION_SUFFIXES]
    file = next((path for path in found if path.is_file()), None)
    if file is None:
        raise DataError(f"{folder}: its wheel is for another Python or machine; name the one for yours as data.renderer")
    if _EXTENSION not in sys.modules:
        spec = spec_from_file_location(_EXTENSION, file)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_EXTENSION] = module
    return sys.modules[_EXTENSION]
