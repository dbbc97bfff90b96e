"""Augmentation of sounds: equalisers, rooms, noise and levels, as a function of a generator."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfft

from starters.data.sounds.soundfonts import Wave
from training.recipe_settings import RecipeSettings

_BANDS = 6
"""Number of points of an equaliser's curve, evenly spread over the logarithm of frequency."""
_LOWEST_HZ = 60.0
_ONSET = 0.05
"""Share of the peak at which a sound starts."""


class Acoustics(RecipeSettings):
    """Probabilities and ranges of augmentations."""

    softened: float = 0.0
    softening_s: tuple[float, float] = (0.005, 0.08)
    """Time in which a softened sound rises to 1 - 1 / e."""

    damped: float = 0.2
    damping_s: tuple[float, float] = (0.05, 1.0)
    """Time in which a damped sound falls to 1 / e."""
    equalised: float = 0.7
    equaliser_db: float = 6.0
    """Standard deviation of the curve's points."""
    muffled: float = 0.0
    """Low-pass filtered, as by a telephone, a low sample rate or a distant microphone."""
    muffled_hz: tuple[float, float] = (1200.0, 6000.0)
    reverberant: float = 0.5
    reverberation_s: tuple[float, float] = (0.1, 1.5)
    """Time in which a room's sound falls by 60 dB."""
    wet_db: tuple[float, float] = (-25.0, 0.0)
    """Level of the room's sound relative to the direct one."""
    driven: float = 0.15
    """Overdriven by a preamplifier."""
    noisy: float = 0.5
    snr_db: tuple[float, float] = (10.0, 50.0)
    level_db: tuple[float, float] = (-35.0, 0.0)
    """Peak level relative to full scale."""


def augment(wave: Wave, rate: int, generator: Generator, acoustics: Acoustics | None = None) -> Wave:
    """Augment a sound; its length stays the same, and silence gets only noise."""
    chosen = acoustics or Acoustics()
    damped, equalised, reverberant, driven, noisy = (
        float(generator.random()) < share for share in (chosen.damped, chosen.equalised, chosen.reverberant, chosen.driven, chosen.noisy)
    )
    softened, muffled = (share > 0 and float(generator.random()) < share for share in (chosen.softened, chosen.muffled))
    if softened:
        rise = float(np.exp(generator.uniform(*np.log(chosen.softening_s)))) * rate
        wave = wave * (1 - np.exp(-_since_onset(wave) / np.float32(rise)))
    if damped:
        fall = float(np.exp(generator.uniform(*np.log(chosen.damping_s)))) * rate
        wave = wave * np.exp(-_since_onset(wave) / np.float32(fall))
    if equalised or reverberant or muffled:
        size = next_fast_len(2 * len(wave), real=True)
        spectrum = rfft(wave, size)
        if equalised:
            spectrum *= _curve(size, rate, chosen.equaliser_db, generator)
        if muffled:
            hertz = np.arange(len(spectrum), dtype=np.float32) * (rate / size)
            cut = float(np.exp(generator.uniform(*np.log(chosen.muffled_hz))))
            spectrum *= 1 / np.sqrt(1 + (hertz / np.float32(cut)) ** 8)
        if reverberant:
            spectrum *= rfft(_room(len(wave), rate, chosen, generator), size)
        wave = irfft(spectrum, size)[: len(wave)].astype(np.float32)
    peak = float(np.abs(wave).max()) or 1.0
    wave = wave / peak
    if driven:
        gain = float(generator.uniform(1.0, 6.0))
        wave = np.tanh(gain * wave) / np.tanh(gain)
    if noisy:
        wave = wave + _noise(len(wave), float(generator.uniform(*chosen.snr_db)), float(np.sqrt(np.mean(np.square(wave)))), generator)
    peak = float(np.abs(wave).max()) or 1.0
    return (wave * (_gain(float(generator.uniform(*chosen.level_db))) / peak)).astype(np.float32)


def onset(wave: Wave) -> int:
    """Return the sample at which a sound starts."""
    magnitude = np.abs(wave)
    return int(np.argmax(magnitude > _ONSET * magnitude.max()))


def _since_onset(wave: Wave) -> Wave:
    """Return the number of samples since a sound's onset, 0 before."""
    since: Wave = np.maximum(np.arange(len(wave), dtype=np.float32) - onset(wave), 0)
    return since


def _gain(db: float) -> float:
    return float(10 ** (db / 20))


def _curve(size: int, rate: int, spread_db: float, generator: Generator) -> Wave:
    """Draw an equaliser: gains of the frequencies of a transform of `size` samples."""
    places = np.linspace(np.log(_LOWEST_HZ), np.log(rate / 2), _BANDS)
    hertz = np.maximum(np.arange(size // 2 + 1) * (rate / size), 1.0)
    decibels = np.interp(np.log(hertz), places, generator.normal(0, spread_db, _BANDS))
    return np.asarray(10 ** (decibels / 20), np.float32)


def _room(samples: int, rate: int, settings: Acoustics, generator: Generator) -> Wave:
    """Draw an impulse response: the direct sound, and after some milliseconds decaying noise."""
    seconds = float(np.exp(generator.uniform(*np.log(settings.reverberation_s))))
    length = min(samples, int(seconds * rate))
    first = int(generator.uniform(0.001, 0.02) * rate)
    decay = np.exp(-np.arange(length, dtype=np.float32) * (np.log(1000.0) / (seconds * rate)))
    tail: Wave = generator.standard_normal(length, np.float32) * decay
    tail[:first] = 0
    tail *= _gain(float(generator.uniform(*settings.wet_db))) / (float(np.sqrt(np.square(tail).sum())) or 1.0)
    tail[0] = 1.0
    return tail


def _noise(samples: int, snr_db: float, loudness: float, generator: Generator) -> Wave:
    """Draw white to brown noise, `snr_db` below the sound's root mean square. Silence gets the noise of a sound at full scale."""
    tilt = float(generator.uniform(0, 1))  # of the amplitude over frequency: 0 white, 1 brown
    size = next_fast_len(samples, real=True)
    spectrum = rfft(generator.standard_normal(size, np.float32)) / np.maximum(np.arange(size // 2 + 1), 1.0).astype(np.float32) ** tilt
    noise = irfft(spectrum, size)[:samples].astype(np.float32)
    level = float(np.sqrt(np.mean(np.square(noise)))) or 1.0
    return np.asarray(noise * np.float32((loudness or 0.1) * _gain(-snr_db) / level))
