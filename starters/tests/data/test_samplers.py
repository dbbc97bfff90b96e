"""Notes of recorded instruments: files named after keys and patches, made up, through the code that reads real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from pydantic import TypeAdapter, ValidationError

from models.bundle_schema import Sound
from starters.data.sounds.instrument_notes import InstrumentNotes, RenderedNotes, open_some
from starters.data.sounds.sampled_instruments import Instruments, RecordingPlayer, key_of, open_instruments
from starters.data.sounds.soundfonts import Note
from starters.tests.recordings import cached_notes, cached_patches, patch
from starters.tests.soundfonts import RATE, RENDERER, cached_font, cached_renderer, hiss, tone
from training.data.packages import PyPIPackage
from training.errors import DataError

SOUND = Sound(sample_rate=RATE, frames=64, mel_bins=32, mean=-8.0, std=4.0)
FLUTE = {"C4": tone(262, 1), "Gs4": tone(415, 1), "A#5v10": tone(932, 1), "README": tone(100, 1)}


def open_source(settings: dict[str, Any], cache: Path) -> RecordingPlayer:
    instruments: Instruments = TypeAdapter(Instruments).validate_python(settings)
    found = open_instruments(instruments, PyPIPackage.model_validate(RENDERER), RATE, cache)
    assert isinstance(found, RecordingPlayer)
    return found


def loudest(wave: np.ndarray) -> float:
    """Frequency in Hz."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


def level(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


def test_keys_are_read_from_names_of_files() -> None:
    names = {"C4": 60, "As3": 58, "A#3": 58, "Bb3": 58, "A0v10": 21, "F2 v2": 41, "C8": 108, "README": None, "H4": None, "C4 loud": None}
    assert {name: key_of(name) for name in names} == names


def test_a_note_is_played_from_the_nearest_recording(tmp_path: Path) -> None:
    flute = open_source(cached_notes(tmp_path, "flute", "0:73", FLUTE), tmp_path)
    for key, hertz in ((57, 220), (60, 262), (62, 294), (67, 392), (68, 415), (85, 1109)):
        wave = flute.play("0:73", [Note(key, 0.9, 4000, 12000)], RATE)
        assert np.abs(wave[:4000]).max() == 0 and loudest(wave[4000:12000]) == pytest.approx(hertz, rel=0.01)
    assert loudest(flute.play("0:73", [Note(60, 0.9, 0, 8000)], 8000, tuning=-12.0)) == pytest.approx(131, rel=0.02)
    quiet, loud = (flute.play("0:73", [Note(60, velocity, 0, 8000)], RATE) for velocity in (0.3, 0.9))
    assert level(loud[:8000]) > 5 * level(quiet[:8000]) > 0
    assert level(loud[7000:8000]) > 10 * level(loud[13000:14000]) > 0  # it dies away after its end


def test_keys_that_are_far_from_every_recording_are_not_played(tmp_path: Path) -> None:
    flute = open_source(cached_notes(tmp_path, "flute", "0:73", FLUTE), tmp_path)
    assert list(flute.keys("0:73")) == [*range(57, 73), *range(78, 86)] and not flute.keys("0:74")


def test_a_class_draws_from_every_maker_equally_often(tmp_path: Path) -> None:
    presets = [f"0:{program}" for program in range(3)]
    font = cached_font(tmp_path, "font", {(0, program): tone(262, 1) for program in range(3)} | {(128, 0): hiss(0.2)})
    played = InstrumentNotes.model_validate(
        {
            "renderer": cached_renderer(tmp_path),
            "fonts": [font, cached_notes(tmp_path, "flute", "0:1", FLUTE)],
            "instruments": {"flute": {"presets": presets, "keys": [70, 90]}, "drum": {"drums": [38]}},
            "kits": ["128:0"],
            "samples": 4,
        }
    )
    source = open_some(played, SOUND, tmp_path)
    assert [(voice.font, voice.preset) for voice in source.voices[0]] == [(0, "0:0"), (0, "0:1"), (0, "0:2"), (1, "0:1")]
    assert source.voices[0][3].keys == (70, 71, 72, *range(78, 86))
    drawn = [source.note(source.voices[0][3], default_rng(seed)) for seed in range(3)]
    assert all(np.abs(wave).max() == pytest.approx(0.5) for wave in drawn)
    recorded = sum(_from_recordings(source, seed) for seed in range(200))
    assert 70 < recorded < 130


def _from_recordings(source: RenderedNotes, seed: int) -> bool:
    return source.voice(0, default_rng(seed)).font == 1


def test_patches_sound_at_their_roots_and_repeat_their_loops(tmp_path: Path) -> None:
    short = tone(262, 1, 0.25)
    period = (1000, 1000 + round(40 * RATE / 262))
    files = {"Tone_000/073_Flute": patch(short, 261.6, period), "Tone_000/045_Plucked": patch(short, 261.6)}
    both = open_source(cached_patches(tmp_path, "patches", files | {"Drum_000/038_Snare": patch(hiss(0.2), 73.4)}), tmp_path)
    sustained, plucked = (both.play(preset, [Note(72, 1.0, 0, RATE)], RATE) for preset in ("0:73", "0:45"))
    assert loudest(sustained[8000:]) == pytest.approx(524, rel=0.01) and level(sustained[15000:]) == pytest.approx(
        level(sustained[1000:2000]), rel=0.1
    )
    assert loudest(plucked[:1900]) == pytest.approx(524, rel=0.02) and np.abs(plucked[2100:]).max() == 0
    assert list(both.keys("128:0")) == [38] and list(both.keys("0:73")) == list(range(128)) and not both.keys("0:0")
    snare = both.play("128:0", [Note(38, 1.0, 0, 100)], RATE)
    np.testing.assert_allclose(snare[100:2900], hiss(0.2)[100:2900], atol=0.02)  # as it was recorded, whatever is held


def test_packages_that_have_no_notes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file is named after a key"):
        open_source(cached_notes(tmp_path, "nameless", "0:73", {"README": tone(262, 1)}), tmp_path)
    with pytest.raises(DataError, match="no patches in its folders"):
        open_source(cached_patches(tmp_path, "empty", {}), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_source(cached_notes(tmp_path, "elsewhere", "0:73", FLUTE, folder="samples"), tmp_path)
    broken = open_source(cached_patches(tmp_path, "broken", {"Tone_000/000_Piano": patch(tone(262, 1), 262)[:-9]}), tmp_path)
    with pytest.raises(DataError, match=r"000_Piano\.pat: cannot be read as a patch"):
        broken.play("0:0", [Note(60, 1.0, 0, 8000)], 8000)
    for preset in ("piano", "128:0"):
        with pytest.raises(ValidationError):
            open_source(cached_notes(tmp_path, f"preset {preset}", preset, FLUTE), tmp_path)
