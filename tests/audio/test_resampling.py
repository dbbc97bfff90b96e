"""Resampling against a polyphase filter in float64 (SciPy's), by what a network hears: logarithms of mel bands."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import chirp, firwin, resample_poly

from models.media.audio import SoundLimits
from models.media.fbank import log_mel
from server.media.recordings import read_sound as read
from tests.support.audio import tones, wav

RATE = 16_000
SECONDS = 2.0


def stereo(rate: int, kind: str) -> NDArray[np.float64]:
    """Draw channels that differ: (n, 2)."""
    count = round(SECONDS * rate)
    generator = np.random.default_rng(0)
    if kind == "noise":
        return 0.1 * generator.standard_normal((count, 2))
    if kind == "sweep":
        times = np.arange(count) / rate
        return np.stack([0.5 * chirp(times, 50, SECONDS, 0.45 * rate), 0.5 * chirp(times, 0.45 * rate, SECONDS, 50)], axis=1)
    clicks = np.zeros((count, 2))
    clicks[generator.integers(0, count, 20), generator.integers(0, 2, 20)] = 0.9
    return clicks + tones(SECONDS, rate, 220.0, 1760.0, 5000.0)[:, None]


def bands(sound: NDArray[np.float64] | NDArray[np.float32]) -> torch.Tensor:
    return log_mel(torch.from_numpy(sound.astype(np.float64)))


def polyphase(samples: NDArray[Any], rate: int, *, sharp: bool) -> NDArray[np.float64]:
    """Resample (n, 2) to (m,) at 16 kHz. sharp: a long filter, which lets nothing fold back; else SciPy's usual one, which does a
    little."""
    shared = gcd(rate, RATE)
    up, down = RATE // shared, rate // shared
    longest = max(up, down)
    window = firwin(2 * 64 * longest + 1, 1 / longest, window=("kaiser", 14.0)) if sharp else ("kaiser", 5.0)
    return resample_poly(samples.astype(np.float64), up, down, axis=0, window=window).mean(axis=1)


@pytest.mark.parametrize(("kind", "sharp"), [("noise", True), ("noise", False), ("sweep", True), ("clicks", True)])
@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 96_000])
def test_mel_bands_are_those_of_a_polyphase_filter(rate: int, kind: str, sharp: bool) -> None:
    """The bound of the issue is a mean absolute difference of 0.05 at 44.1 kHz."""
    samples = stereo(rate, kind).astype(np.float32)
    resampled = read(wav(samples, rate), RATE, SoundLimits())
    expected = polyphase(samples, rate, sharp=sharp)
    assert abs(len(resampled) - len(expected)) <= 1
    count = min(len(resampled), len(expected))
    assert float((bands(resampled[:count]) - bands(expected[:count])).abs().mean()) < 0.05


def test_nothing_is_delayed() -> None:
    """The peak of a click comes where it was."""
    samples = np.zeros(44_100, np.float32)
    samples[22_050] = 0.9
    assert int(np.argmax(read(wav(samples, 44_100), RATE, SoundLimits()))) == 8_000


@pytest.mark.parametrize("rate", [44_100, 96_000, 383_999])
def test_what_lies_above_the_band_does_not_fold_back(rate: int) -> None:
    """A tone at 10 kHz is silent at 16 kHz, at least 80 dB below itself, also where rates have no small ratio."""
    resampled = read(wav(tones(1.0, rate, 10_000.0, level=0.5).astype(np.float32), rate), RATE, SoundLimits())
    assert np.abs(resampled[1000:-1000]).max() < 0.5e-4


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 47_999, 383_999])
def test_tones_within_the_band_keep_their_shape(rate: int) -> None:
    resampled = read(wav(tones(1.0, rate, 1000.0, 3000.0).astype(np.float32), rate), RATE, SoundLimits())
    assert np.abs(resampled[1000:15_000] - tones(1.0, RATE, 1000.0, 3000.0)[1000:15_000]).max() < 1e-4
