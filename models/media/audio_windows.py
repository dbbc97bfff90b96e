"""Consecutive windows of a sound, each as long as a spectrogram. Imports no torch: gateways count them."""

from __future__ import annotations

from models.bundle_schema import Sound

HOP_S, ANALYSIS_WINDOW_S = 0.01, 0.025
"""Hop between frames of a spectrogram, and length of the samples of one frame, in seconds (`models.media.fbank`)."""
MAX_WINDOWS = 12
MIN_REST_FRACTION = 0.1
"""Minimum part of a window at the end of a sound that counts as a window, since it counts as much as the others."""


def window_samples(sound: Sound) -> int:
    """Return the number of samples from the start of a window to that of the next one."""
    return sound.frames * int(sound.sample_rate * HOP_S)


def count_windows(samples: int, sound: Sound) -> int:
    """Return the number of windows of a sound, the last one padded; at most `MAX_WINDOWS`."""
    full, rest = divmod(samples, window_samples(sound))
    has_partial = rest >= max(MIN_REST_FRACTION * window_samples(sound), ANALYSIS_WINDOW_S * sound.sample_rate)
    return min(MAX_WINDOWS, max(1, full + has_partial))
