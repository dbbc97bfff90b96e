"""Windows that a sound is heard in: consecutive, each as long as a spectrogram. Imports no torch: gateways count them."""

from __future__ import annotations

from models.bundle_schema import Sound

HOP_S, ANALYSIS_WINDOW_S = 0.01, 0.025
"""Seconds from one frame of a spectrogram to the next, and of the sound that a frame is made of (`models.media.fbank`)."""
MAX_WINDOWS = 12
MIN_REST_FRACTION = 0.1
"""Share of a window that must be left at the end of a sound to be a window of its own: a shorter one would be padding, and count as much
as the others."""


def window_samples(sound: Sound) -> int:
    """Return the samples from the begin of a window to that of the next one."""
    return sound.frames * int(sound.sample_rate * HOP_S)


def count_windows(samples: int, sound: Sound) -> int:
    """Return how many windows a sound fills, the last one padded; `MAX_WINDOWS` at most."""
    whole, rest = divmod(samples, window_samples(sound))
    is_heard = rest >= max(MIN_REST_FRACTION * window_samples(sound), ANALYSIS_WINDOW_S * sound.sample_rate)
    return min(MAX_WINDOWS, max(1, whole + is_heard))
