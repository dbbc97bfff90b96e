"""Sounds of instruments that a SoundFont plays: made-up ones, through the real renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from pydantic import ValidationError

from models.bundle_schema import Sound
from starters.data.sounds.audio_augmentation import Acoustics, augment
from starters.data.sounds.instrument_notes import InstrumentNotes, RenderedNotes
from starters.data.sounds.soundfonts import Note
from starters.tests.soundfonts import RATE, ROOT_KEY, cached_font, cached_renderer, hiss, tone
from training.data.source import SamplePreparation, UnreadableSample
from training.errors import DataError

SOUND = Sound(sample_rate=RATE, frames=64, mel_bins=32, mean=-8.0, std=4.0)
FONT = {(0, 0): tone(262, 1), (0, 1): tone(262, 8), (8, 0): tone(262, 2), (128, 0): hiss(0.2), (128, 9): hiss(0.3)}
INSTRUMENTS = {
    "whistle": {"presets": ["0:0", "8:0"], "keys": [55, 65]},
    "reed": {"presets": ["0:1"], "keys": [55, 65]},
    "snare": {"drums": [38, 40]},
}


def open_source(cache: Path, font: dict[str, Any] | None = None, **changes: Any) -> RenderedNotes:
    settings: dict[str, Any] = {
        "kind": "notes",
        "renderer": cached_renderer(cache),
        "fonts": [cached_font(cache, "made-up", FONT, **(font or {}))],
        "instruments": INSTRUMENTS,
        "kits": ["128:0", "128:9"],
        "samples": 12,
    }
    played = InstrumentNotes.model_validate(settings | changes).open(SamplePreparation(sound=SOUND, cache=cache))
    assert isinstance(played, RenderedNotes)
    return played


def loudest(wave: np.ndarray) -> float:
    """Frequency in Hz."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


def test_sample_is_spectrogram_of_its_class_and_depends_on_draw(tmp_path: Path) -> None:
    played = open_source(tmp_path)
    first, other = played.sample(4, 77), played.sample(5, 77)
    assert played.labels == ("whistle", "reed", "snare") and len(played) == 12
    assert first["spectrogram"].shape == (1, 64, 32) and int(first["label"]) == 1 and int(other["label"]) == 2
    again = open_source(tmp_path).sample(4, 77)
    assert torch.equal(first["spectrogram"], again["spectrogram"])
    assert not torch.equal(first["spectrogram"], played.sample(4, 78)["spectrogram"])


def test_a_note_sounds_at_its_key_from_its_start_on(tmp_path: Path) -> None:
    [synth] = open_source(tmp_path).synths
    wave = synth.play("0:0", [Note(ROOT_KEY + 12, 0.9, 4000, 12000)], RATE)
    assert np.abs(wave[:3900]).max() == 0 and np.abs(wave[4100:]).max() > 0.01
    assert loudest(wave[4000:12000]) == pytest.approx(524, abs=5)
    assert loudest(synth.play("0:0", [Note(ROOT_KEY, 0.9, 0, 8000)], 8000, tuning=-12.0)) == pytest.approx(131, abs=5)


def test_held_out_preset_is_played_by_other_part_only(tmp_path: Path) -> None:
    train, evaluated = open_source(tmp_path, {"without": ["8:0", "128:9"]}), open_source(tmp_path, {"only": ["8:0", "0:1", "128:9"]})
    presets = [[voice.preset for voice in voices] for voices in train.voices]
    assert presets == [["0:0"], ["0:1"], ["128:0", "128:0"]]
    assert [[voice.preset for voice in voices] for voices in evaluated.voices] == [["8:0"], ["0:1"], ["128:9", "128:9"]]
    assert [voice.keys for voice in evaluated.voices[2]] == [(38,), (40,)]


def test_a_class_that_no_font_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no preset of reed"):
        open_source(tmp_path, {"without": ["0:1"]})


def test_a_preset_or_kit_that_is_none_is_refused(tmp_path: Path) -> None:
    for changes in ({"kits": ["0:0"]}, {"instruments": INSTRUMENTS | {"bell": {"presets": ["14"]}}}, {"instruments": {"a": {}, "b": {}}}):
        with pytest.raises(ValidationError):
            open_source(tmp_path, **changes)


def test_wheel_for_other_machine_differs_from_broken_font(tmp_path: Path) -> None:
    broken = cached_font(tmp_path, "broken", FONT)
    sha256 = broken["package"]["sha256"][:12]
    (tmp_path / f"broken-{sha256}" / "font.sf2").write_bytes(b"no font")
    with pytest.raises(DataError, match="cannot be read as a SoundFont"):
        open_source(tmp_path, fonts=[broken])
    (tmp_path / "elsewhere-111111111111").mkdir()
    elsewhere = {"name": "elsewhere", "version": "1", "sha256": "1" * 64}
    with pytest.raises(DataError, match="another Python or machine"):
        open_source(tmp_path, renderer=elsewhere)


def test_a_silent_preset_is_no_sample(tmp_path: Path) -> None:
    quiet = cached_font(tmp_path, "quiet", FONT | {(0, 1): 0 * tone(262, 1)})
    played = open_source(tmp_path, fonts=[quiet])
    with pytest.raises(UnreadableSample, match="0:1 is silent"):
        played.sample(1, 5)
    with pytest.raises(UnreadableSample, match="silent from 55 to 65"):
        played.note(played.voices[1][0], default_rng(0))


def test_a_room_adds_a_tail_and_noise_has_its_level() -> None:
    click = np.zeros(RATE, np.float32)
    click[:100] = tone(1000, 1, 100 / RATE)
    off = {"damped": 0.0, "equalised": 0.0, "reverberant": 0.0, "driven": 0.0, "noisy": 0.0, "level_db": (-6.0, -6.0)}
    plain = augment(click, RATE, default_rng(1), Acoustics(**off))
    assert np.abs(plain).max() == pytest.approx(0.501, abs=1e-3) and np.abs(plain[200:]).max() < 1e-6
    room = augment(click, RATE, default_rng(1), Acoustics(**off | {"reverberant": 1.0, "reverberation_s": (0.5, 0.5)}))
    assert np.abs(room[1000:3000]).max() > 10 * np.abs(room[-1000:]).max() > 0
    noisy = augment(tone(262, 1), RATE, default_rng(1), Acoustics(**off | {"noisy": 1.0, "snr_db": (20.0, 20.0)}))
    clean = augment(tone(262, 1), RATE, default_rng(1), Acoustics(**off))
    noise = noisy / np.abs(noisy).max() - clean / np.abs(clean).max()
    assert 0.02 < np.sqrt(np.mean(np.square(noise))) / np.sqrt(np.mean(np.square(clean / np.abs(clean).max()))) < 0.3


def test_muffled_sound_lacks_highs_and_softened_one_its_attack() -> None:
    off = {"damped": 0.0, "equalised": 0.0, "reverberant": 0.0, "driven": 0.0, "noisy": 0.0, "level_db": (0.0, 0.0)}
    both = tone(500, 1) + tone(5000, 1)
    muffled = np.abs(np.fft.rfft(augment(both, RATE, default_rng(1), Acoustics(**off | {"muffled": 1.0, "muffled_hz": (1500.0, 1500.0)}))))
    assert muffled[500] > 50 * muffled[5000]
    softened = augment(hiss(), RATE, default_rng(1), Acoustics(**off | {"softened": 1.0, "softening_s": (0.05, 0.05)}))
    assert np.abs(softened[:100]).max() < 0.2 < 0.9 < np.abs(softened[8000:]).max()
