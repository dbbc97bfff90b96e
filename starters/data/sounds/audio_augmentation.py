"""Changes of a sound between an instrument and a file: equalisers, rooms, noise, levels. The same generator draws the same."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfft

from starters.data.sounds.soundfonts import Wave
from training.recipe_settings import Settings

_BANDS = 6
"""Points of an equaliser's curve, evenly spread over the logarithm of frequency."""
_LOWEST_HZ = 60.0
_ONSET = 0.05
"""Share of the peak at which a sound begins."""


class Acoustics(Settings):
    """Probabilities and ranges. What has a probability of 0 draws nothing."""

    softened: float = 0.0
    softening_s: tuple[float, float] = (0.005, 0.08)
    """Time in which the begin of a softened sound rises to 1 - 1 / e."""

    damped: float = 0.2
    damping_s: tuple[float, float] = (0.05, 1.0)
    """Time in which a damped sound falls to 1 / e."""
    equalised: float = 0.7
    equaliser_db: float = 6.0
    """Standard deviation of the curve's points."""
    muffled: float = 0.0
    """Without highs, as of a telephone, a low sample rate or a distant microphone."""
    muffled_hz: tuple[float, float] = (1200.0, 6000.0)
    reverberant: float = 0.5
    reverberation_s: tuple[float, float] = (0.1, 1.5)
    """Time in which a room's sound falls by 60 dB."""
    wet_db: tuple[float, float] = (-25.0, 0.0)
    """The room's sound relative to the direct one."""
    driven: float = 0.15
    """Overdriven by a preamplifier."""
    noisy: float = 0.5
    snr_db: tuple[float, float] = (10.0, 50.0)
    level_db: tuple[float, float] = (-35.0, 0.0)
    """Peak of what is written, relative to full scale."""


def recorded(wave: Wave, rate: int, generator: Generator, acoustics: Acoustics | None = None) -> Wave:
    """Return as many samples. A silent wave stays silent but for noise."""
    asked = acoustics or Acoustics()
    damped, equalised, reverberant, driven, noisy = (
        float(generator.random()) < share for share in (asked.damped, asked.equalised, asked.reverberant, asked.driven, asked.noisy)
    )
    softened, muffled = (share > 0 and float(generator.random()) < share for share in (asked.softened, asked.muffled))
    if softened:
        rise = float(np.exp(generator.uniform(*np.log(asked.softening_s)))) * rate
        wave = wave * (1 - np.exp(-_since_onset(wave) / np.float32(rise)))
    if damped:
        fall = float(np.exp(generator.uniform(*np.log(asked.damping_s)))) * rate
        wave = wave * np.exp(-_since_onset(wave) / np.float32(fall))
    if equalised or reverberant or muffled:
        size = next_fast_len(2 * len(wave), real=True)
        spectrum = rfft(wave, size)
        if equalised:
            spectrum *= _curve(size, rate, asked.equaliser_db, generator)
        if muffled:
            hertz = np.arange(len(spectrum), dtype=np.float32) * (rate / size)
            cut = float(np.exp(generator.uniform(*np.log(asked.muffled_hz))))
            spectrum *= 1 / np.sqrt(1 + (hertz / np.float32(cut)) ** 8)
        if reverberant:
            spectrum *= rfft(_room(len(wave), rate, asked, generator), size)
        wave = irfft(spectrum, size)[: len(wave)].astype(np.float32)
    peak = float(np.abs(wave).max()) or 1.0
    wave = wave / peak
    if driven:
        gain = float(generator.uniform(1.0, 6.0))
        wave = np.tanh(gain * wave) / np.tanh(gain)
    if noisy:
        wave = wave + _noise(len(wave), float(generator.uniform(*asked.snr_db)), float(np.sqrt(np.mean(np.square(wave)))), generator)
    peak = float(np.abs(wave).max()) or 1.0
    return (wave * (_gain(float(generator.uniform(*asked.level_db))) / peak)).astype(np.float32)


def onset(wave: Wave) -> int:
    """Return the sample at which a sound begins."""
    magnitude = np.abs(wave)
    return int(np.argmax(magnitude > _ONSET * magnitude.max()))


def _since_onset(wave: Wave) -> Wave:
    """Return the samples since a sound began, 0 before."""
    since: Wave = np.maximum(np.arange(len(wave), dtype=np.float32) - onset(wave), 0)
    return since


def _gain(db: float) -> float:
    return float(10 ** (db / 20))


def _curve(size: int, rate: int, spread_db: float, generator: Generator) -> Wave:
    """Gains of the frequencies of a transform of so many samples."""
    places = np.linspace(np.log(_LOWEST_HZ), np.log(rate / 2), _BANDS)
    hertz = np.maximum(np.arange(size // 2 + 1) * (rate / size), 1.0)
    decibels = np.interp(np.log(hertz), places, generator.normal(0, spread_db, _BANDS))
    return np.asarray(10 ** (decibels / 20), np.float32)


def _room(samples: int, rate: int, asked: Acoustics, generator: Generator) -> Wave:
    """An impulse response: the direct sound, and after some milliseconds noise that dies away."""
    seconds = float(np.exp(generator.uniform(*np.log(asked.reverberation_s))))
    length = min(samples, int(seconds * rate))
    first = int(generator.uniform(0.001, 0.02) * rate)
    decay = np.exp(-np.arange(length, dtype=np.float32) * (np.log(1000.0) / (seconds * rate)))
    tail: Wave = generator.standard_normal(length, np.float32) * decay
    tail[:first] = 0
    tail *= _gain(float(generator.uniform(*asked.wet_db))) / (float(np.sqrt(np.square(tail).sum())) or 1.0)
    tail[0] = 1.0
    return tail


def _noise(samples: int, snr_db: float, loudness: float, generator: Generator) -> Wave:
    """White to brown, so many dB below the sound's root mean square. A silent sound gets the noise of one at full scale."""
    tilt = float(generator.uniform(0, 1))  # of the amplitude over frequency: 0 white, 1 brown
    size = next_fast_len(samples, real=True)
    spectrum = rfft(generator.standard_normal(size, np.float32)) / np.maximum(np.arange(size // 2 + 1), 1.0).astype(np.float32) ** tilt
    noise = irfft(spectrum, size)[:samples].astype(np.float32)
    own = float(np.sqrt(np.mean(np.square(noise)))) or 1.0
    return np.asarray(noise * np.float32((loudness or 0.1) * _gain(-snr_db) / own))
