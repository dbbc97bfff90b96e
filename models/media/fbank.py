"""Mel filter banks as in Kaldi: the input of speech and audio models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FbankConfig:
    """Filter bank with the defaults of Audio-MAE and MAViL. No dither, no energy; frames are entirely inside the sound."""

    sample_rate: int = 16000
    mel_bins: int = 128
    window_ms: float = 25.0
    hop_ms: float = 10.0
    preemphasis: float = 0.97
    low_hz: float = 20.0
    high_hz: float = 8000.0
    floor: float = 1.1920929e-07
    """Lower bound of a filter's energy, before the logarithm. With 128 filters the fourth covers no frequency and is always at it."""
    remove_mean: bool = True
    power: bool = True
    """Sum the power of each frequency; otherwise its magnitude."""

    def __post_init__(self) -> None:
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"filters from {self.low_hz:g} to {self.high_hz:g} Hz do not fit a sample rate of {self.sample_rate}, "
                f"which holds 0 to {self.sample_rate / 2:g} Hz"
            )

    @property
    def window(self) -> int:
        """Length of a window in samples."""
        return int(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        return int(self.sample_rate * self.hop_ms / 1000)

    @property
    def transform(self) -> int:
        """Length of the Fourier transform: the smallest power of 2 that is at least the window."""
        return int(2 ** math.ceil(math.log2(self.window)))


def log_mel(waveforms: Tensor, config: FbankConfig | None = None) -> Tensor:
    """Return log energies of all filters: (..., samples), mono in [-1, 1] → (..., frames, mel bins).

    Raises ValueError for a sound shorter than one window.
    """
    config = config or FbankConfig()
    if waveforms.shape[-1] < config.window:
        raise ValueError(f"a sound of {waveforms.shape[-1]} samples is shorter than one window of {config.window}")
    frames = waveforms.unfold(-1, config.window, config.hop)  # (..., frames, window)
    if config.remove_mean:
        frames = frames - frames.mean(dim=-1, keepdim=True)
    before = F.pad(frames.flatten(0, -2), (1, 0), mode="replicate").view(*frames.shape[:-1], -1)[..., :-1]
    frames = (frames - config.preemphasis * before) * _hanning(config.window).to(frames)
    spectrum = torch.fft.rfft(frames, n=config.transform).abs()[..., :-1]  # without the highest frequency
    energies: Tensor = (spectrum.square() if config.power else spectrum) @ mel_filters(config).to(spectrum)
    return energies.clamp(min=config.floor).log()


def _hanning(length: int) -> Tensor:
    """Return Kaldi's window of this name, which is symmetric: (length,), float64."""
    return 0.5 - 0.5 * (torch.arange(length, dtype=torch.float64) * (2 * math.pi / (length - 1))).cos()


def mel_filters(config: FbankConfig) -> Tensor:
    """Return filters, float64 (frequencies of the transform except the highest, mel bins): adjacent triangles, linear in mel."""
    low, high = _mel(torch.tensor([config.low_hz, config.high_hz], dtype=torch.float64))
    edges = torch.linspace(float(low), float(high), config.mel_bins + 2, dtype=torch.float64)
    step = config.sample_rate / config.transform
    mels = _mel(torch.arange(config.transform // 2, dtype=torch.float64) * step).unsqueeze(1)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()
