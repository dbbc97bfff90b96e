"""Sampled instruments: recordings of single notes, each of which is also played at neighbouring keys.

A package has either the files of one instrument, named after keys (`C4.mp3`, `As3.mp3`, `F#2v10.mp3`; C4 is middle C), or GUS patches of
General MIDI, whose envelopes are ignored: in the patches read here they only let a note decay after its end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Tag, field_validator
from scipy.signal import resample

from starters.data.sounds.soundfonts import KITS, Font, Note, Presets, Synth, Wave, open_font, parse_preset
from training.data.decode import read_sound
from training.data.packages import LicensedPackage, PyPIPackage, obtain
from training.data.source import UnreadableSample
from training.errors import DataError

_NAME = re.compile(r"([A-G])([s#b]?)(\d)(?: ?v\d+)?")
"""Stem of a file's name: a key, and a velocity."""
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ALTERED = {"": 0, "s": 1, "#": 1, "b": -1}
_BEYOND, _BETWEEN = 3, 4
"""Maximum shift of a recording in semitones: beyond the lowest and highest one, and between two."""
_MAX_DURATION_S = 4.0
"""Maximum duration of a recording; the rest is cut off."""
_FINER = 2
"""Oversampling of recordings, without which linear interpolation would lose high frequencies."""
_RELEASE_S = 0.1
"""Time in which a note falls to 1 / e after its end."""


class SampledInstrument(LicensedPackage, Presets):
    """Recordings in a package, and their preset of General MIDI."""

    folder: str
    preset: str | None = None
    """Preset of the folder's files; None: its folders Tone_000 and Drum_000 have numbered patches."""

    @field_validator("preset")
    @classmethod
    def _preset(cls, value: str | None) -> str | None:
        if value is not None and parse_preset(value)[0] == KITS:
            raise ValueError(f"{value}: is a kit, whose keys are not pitches")
        return value


def _kind(value: Any) -> str:
    sampled = isinstance(value, SampledInstrument) or (isinstance(value, Mapping) and "package" not in value)
    return "recordings" if sampled else "font"


Instruments = Annotated[Annotated[Font, Tag("font")] | Annotated[SampledInstrument, Tag("recordings")], Discriminator(_kind)]
"""Instruments of one maker: a SoundFont, which names a `package`, or recordings, which name an `npm`, `pypi` or `debian` package."""


@dataclass(frozen=True)
class NoteRecording:
    key: float
    """Key at which it was recorded."""
    wave: Wave
    rate: float
    loop: tuple[float, float] | None = None
    """Start and end, in samples, of the part that is repeated while a note is held."""


@dataclass(frozen=True)
class SampledPreset:
    keys: Sequence[int]
    read: Callable[[], tuple[NoteRecording, ...]]
    """Decoder of the recordings, cached. Raises DataError."""


class RecordingPlayer:
    """Player of recordings with the interface of `Synth`. Presets are decoded when they are first played."""

    def __init__(self, sample_rate: int, presets: Mapping[str, SampledPreset]) -> None:
        self._rate, self._presets = sample_rate, presets

    def keys(self, preset: str) -> Sequence[int]:
        """Return the keys of a preset, ascending; none if it is missing."""
        found = self._presets.get(preset)
        return found.keys if found else ()

    def play(self, preset: str, notes: Sequence[Note], samples: int, tuning: float = 0.0) -> Wave:
        """Render notes to a wave of `samples`. tuning: semitones by which recordings are shifted."""
        recordings, is_kit = self._presets[preset].read(), parse_preset(preset)[0] == KITS
        wave = np.zeros(samples, np.float32)
        for note in notes:
            if note.start < samples:
                nearest = min(recordings, key=lambda recording: abs(recording.key - note.key))
                shift = tuning + note.key - nearest.key
                sound = self._shift(nearest, shift, samples - note.start)
                if not is_kit:
                    over = np.maximum(np.arange(len(sound), dtype=np.float32) - (note.end - note.start), 0)
                    sound = sound * np.exp(-over / np.float32(_RELEASE_S * self._rate))
                wave[note.start :] += sound * np.float32(note.velocity**2)
        return wave

    def _shift(self, recording: NoteRecording, semitones: float, samples: int) -> Wave:
        """Shift the pitch of a recording by its speed; pad with silence after its end."""
        at = np.arange(samples) * (recording.rate / self._rate * 2 ** (semitones / 12))
        if recording.loop is not None:
            start, end = recording.loop
            at = np.where(at < end, at, start + (at - start) % (end - start))
        at = at[at < len(recording.wave) - 1]
        first = at.astype(np.int64)
        part = (at - first).astype(np.float32)
        played = recording.wave[first] * (1 - part) + recording.wave[first + 1] * part
        return np.pad(played, (0, samples - len(played)))


def open_instruments(instruments: Instruments, renderer: PyPIPackage, sample_rate: int, cache_folder: Path) -> Synth | RecordingPlayer:
    """Open instruments, cached since reading them takes seconds. Raises DataError."""
    if isinstance(instruments, Font):
        return open_font(instruments, renderer, sample_rate, cache_folder)
    folder = obtain(instruments.package, cache_folder) / instruments.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: the package has no such folder")
    return _open(folder, instruments.preset, sample_rate)


@cache
def _open(folder: Path, preset: str | None, sample_rate: int) -> RecordingPlayer:
    return RecordingPlayer(sample_rate, _patches(folder, sample_rate) if preset is None else {preset: _files(folder, sample_rate)})


def key_of(name: str) -> int | None:
    """Return the key of a file's stem, such as 60 of `C4`. None if it is not named after one."""
    found = _NAME.fullmatch(name)
    return 12 * (int(found[3]) + 1) + _STEPS[found[1]] + _ALTERED[found[2]] if found else None


def _files(folder: Path, sample_rate: int) -> SampledPreset:
    """Find the recordings of a folder. Raises DataError."""
    named = {file: key for file in sorted(folder.iterdir()) if file.is_file() and (key := key_of(file.stem)) is not None}
    if not named:
        raise DataError(f"{folder}: no file is named after a key, such as C4.mp3")
    recorded = sorted(named.values())
    keys = range(recorded[0] - _BEYOND, recorded[-1] + _BEYOND + 1)

    @cache
    def read() -> tuple[NoteRecording, ...]:
        return tuple(_decode(file, key, sample_rate) for file, key in named.items())

    return SampledPreset([key for key in keys if min(abs(key - other) for other in recorded) <= _BETWEEN], read)


def _decode(file: Path, key: int, sample_rate: int) -> NoteRecording:
    try:
        wave = read_sound(file, sample_rate, _MAX_DURATION_S).numpy()
    except UnreadableSample as error:
        raise DataError(str(error)) from error
    return NoteRecording(key, resample(wave, _FINER * len(wave)), _FINER * sample_rate)


def _patches(folder: Path, sample_rate: int) -> dict[str, SampledPreset]:
    """Find the patches of a folder, by preset. Raises DataError."""
    tones, drums = (
        {int(file.name[:3]): file for file in sorted((folder / name).glob("[0-9][0-9][0-9]_*.pat"))} for name in ("Tone_000", "Drum_000")
    )
    if not tones and not drums:
        raise DataError(f"{folder}: there are no patches in its folders Tone_000 and Drum_000; other recordings need a preset")
    presets = {f"0:{program}": SampledPreset(range(128), _reader([(file, None)], sample_rate)) for program, file in tones.items()}
    if drums:
        presets[f"{KITS}:0"] = SampledPreset(sorted(drums), _reader([(file, key) for key, file in drums.items()], sample_rate))
    return presets


def _reader(files: Sequence[tuple[Path, int | None]], sample_rate: int) -> Callable[[], tuple[NoteRecording, ...]]:
    """Return a cached reader of patches, with the keys of those that are drums, which are not shifted at their key."""

    @cache
    def read() -> tuple[NoteRecording, ...]:
        return tuple(recording for file, drum in files for recording in _read_recordings(file, drum, sample_rate))

    return read


def _read_recordings(file: Path, drum: int | None, sample_rate: int) -> list[NoteRecording]:
    """Read a patch. Raises DataError."""
    found = []
    for sample in read_patch(file):
        length = max(1, round(len(sample.wave) * sample_rate / sample.rate))
        wave = resample(resample(sample.wave, length), _FINER * length)  # band-limited to the sample rate
        longer = len(wave) / len(sample.wave)
        start, end = (at * longer for at in sample.loop or (0, 0))
        loop = (start, min(end, len(wave) - 1.0)) if sample.loop and drum is None else None
        found.append(NoteRecording(sample.key if drum is None else drum, wave.astype(np.float32), sample.rate * longer, loop))
    return found


_MAGIC = b"GF1PATCH1"
_HEADER, _INSTRUMENT, _LAYER = 129, 63, 47
"""Sizes in bytes; byte 41 from the end of a layer is the number of samples."""
_SAMPLE = struct.Struct("<7sBIIIHIIIhB6B6B6BB40x")
"""Name, fractions of the loop, size, start and end of the loop in bytes, rate, lowest, highest and root frequency in mHz, …, modes."""
_WIDE, _UNSIGNED, _LOOPED, _BACKWARDS = 1, 2, 4, 16
"""Bits of the modes: 16-bit values; unsigned; looped; played backwards."""
_MODES = -1


@dataclass(frozen=True)
class PatchSample:
    key: float
    """Key of the pitch; middle C is 60."""
    wave: NDArray[np.float32]
    """(samples,), from -1 to 1."""
    rate: int
    loop: tuple[int, int] | None
    """Start and end, in samples."""


def read_patch(file: Path) -> list[PatchSample]:
    """Read the samples of the first layer. Raises DataError."""
    content = file.read_bytes()
    try:
        if not content.startswith(_MAGIC):
            raise ValueError("it has no header of a patch")
        at = _HEADER + _INSTRUMENT + _LAYER
        found = []
        for _ in range(content[at - 41]):
            sample, at = _sample(content, at)
            found.append(sample)
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(f"{file}: cannot be read as a patch ({error})") from error
    if not found:
        raise DataError(f"{file}: has no samples")
    return found


def _sample(content: bytes, at: int) -> tuple[PatchSample, int]:
    """Read a sample, and return it with the offset of the next one. Raises ValueError and struct.error."""
    fields = _SAMPLE.unpack_from(content, at)
    size, start, end, rate = fields[2:6]
    root, modes = fields[8], fields[_MODES]
    data = content[at + _SAMPLE.size : at + _SAMPLE.size + size]
    if len(data) < size or not size or not rate or not root:
        raise ValueError("it ends early, or a sample has no length, rate or root")
    if modes & _BACKWARDS:
        raise ValueError("a sample is played backwards, which is not supported")
    width = 2 if modes & _WIDE else 1
    values = np.frombuffer(data[: size // width * width], f"<{'u' if modes & _UNSIGNED else 'i'}{width}").astype(np.float32)
    wave = values / np.float32(2 ** (8 * width - 1)) - np.float32(bool(modes & _UNSIGNED))
    start, end = start // width, min(end // width, len(wave) - 1)
    loop = (start, end) if modes & _LOOPED and start < end else None
    key = 69 + 12 * np.log2(root / 440_000)
    return PatchSample(float(key), wave, rate, loop), at + _SAMPLE.size + size
