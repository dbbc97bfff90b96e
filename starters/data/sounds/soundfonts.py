"""SoundFonts, files of recorded instruments with General MIDI's numbers, played by `tinysoundfont`.

Only the compiled module of that package is used, from its wheel: the rest needs a sound card.
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
from training.recipe_settings import RecipeSettings

KITS = 128
"""Bank of drum kits, in which each key is a different drum."""
_EXTENSION = "_tinysoundfont"
_FADING_S = 0.05
"""Upper bound of the time in which stopped notes fade out in the renderer."""

Wave = NDArray[np.float32]
"""Mono, (samples,)."""


class Presets(RecipeSettings):
    """Selection of presets. A preset is `BANK:PROGRAM`."""

    only: list[str] | None = None
    """Presets; None: all those of the instruments that are available."""
    without: list[str] = Field(default_factory=list)
    """Presets that are left out."""

    @field_validator("only", "without")
    @classmethod
    def _presets(cls, value: list[str] | None) -> list[str] | None:
        for preset in value or ():
            parse_preset(preset)
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
    """Note of an instrument. Times are in samples; velocity is from 0 to 1."""

    key: int
    velocity: float
    start: int
    end: int


class Synth:
    """Renderer of one font at one sample rate. Not thread-safe."""

    def __init__(self, extension: ModuleType, file: Path, sample_rate: int) -> None:
        """Load the font. Raises DataError."""
        try:
            self._font = extension.SoundFont(str(file))
        except RuntimeError as error:
            raise DataError(f"{file}: cannot be read as a SoundFont ({error})") from error
        self._font.set_output(extension.OutputMode.Mono, sample_rate, 0.0)
        self._fading = int(_FADING_S * sample_rate)

    def keys(self, preset: str) -> Sequence[int]:
        """Return the keys of a preset, ascending; none if the font lacks it. Some may be silent."""
        return range(128) if self._index(preset) >= 0 else ()

    def play(self, preset: str, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        """Render notes to a wave of `samples`. tuning: semitones by which recordings are shifted."""
        font = self._font
        font.reset()
        font.render(np.zeros(self._fading, np.float32).data.cast("B"))  # flush earlier notes
        font.channel_set_preset_index(0, self._index(preset))
        font.channel_set_tuning(0, tuning)
        events = sorted({note.start for note in notes} | {note.end for note in notes} | {0, samples})
        wave = np.zeros(samples, np.float32)
        for start, end in pairwise(events):
            for note in notes:
                if note.end == start:
                    font.channel_note_off(0, note.key)
            for note in notes:
                if note.start == start:
                    font.channel_note_on(0, note.key, note.velocity)
            if start < samples:
                part = np.zeros(min(end, samples) - start, np.float32)
                font.render(part.data.cast("B"))
                wave[start:end] = part
        return wave

    def _index(self, preset: str) -> int:
        """Return the index of a preset, negative if the font lacks it."""
        return int(self._font.get_preset_index(*parse_preset(preset)))


def parse_preset(preset: str) -> tuple[int, int]:
    """Return bank and program of `BANK:PROGRAM`. Raises ValueError."""
    bank, colon, program = preset.partition(":")
    if not colon or not bank.isdecimal() or not program.isdecimal() or int(bank) > KITS or int(program) > 127:
        raise ValueError(f"{preset!r} is not a preset; write BANK:PROGRAM, such as 0:40")
    return int(bank), int(program)


def open_font(font: Font, renderer: PyPIPackage, sample_rate: int, cache_folder: Path) -> Synth:
    """Open a font, cached since reading one takes seconds. Raises DataError."""
    file = obtain(font.package, cache_folder) / font.file
    if not file.is_file():
        raise DataError(f"{file}: the package has no such file")
    return _open(obtain(renderer, cache_folder), file, sample_rate)


@cache
def _open(renderer: Path, file: Path, sample_rate: int) -> Synth:
    return Synth(extension_in(renderer), file, sample_rate)


def extension_in(folder: Path) -> ModuleType:
    """Load the compiled module of tinysoundfont from an unpacked wheel, once per process. Raises DataError."""
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
