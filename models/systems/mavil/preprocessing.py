"""Preparation of sound and video for MAViL and Audio-MAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.media.fbank import FbankConfig, log_mel
from models.systems.mavil.log_mel_stats import AUDIOSET, Loudness

ROUNDING = 1e-6
"""Share of a frame that counts as none."""


def spectrogram(waveform: Tensor, frames: int, loudness: Loudness = AUDIOSET, config: FbankConfig | None = None) -> Tensor:
    """(channels, samples) or (samples,) at 16 kHz in [-1, 1] → (1, frames, mel bins), normalised.

    Cut at the end, or padded with zeros before normalising, as published, so that silence and padding differ. AudioSet has 1024 frames,
    ESC-50 512, Speech Commands 128. Raises ValueError for a sound shorter than one analysis window.
    """
    return spectrograms([waveform.mean(dim=0) if waveform.dim() == 2 else waveform], frames, loudness, config)[0]


def spectrograms(waveforms: Sequence[Tensor], frames: int, loudness: Loudness = AUDIOSET, config: FbankConfig | None = None) -> Tensor:
    """The same of several mono sounds, which may have different lengths (samples,), at once → (B, 1, frames, mel bins)."""
    config = config or FbankConfig()
    shortest = min(len(waveform) for waveform in waveforms)
    if shortest < config.window:
        raise ValueError(f"a sound of {shortest} samples is shorter than one window of {config.window}")
    centred = [waveform - waveform.mean() for waveform in waveforms]
    batch = pad_sequence(centred, batch_first=True)[:, : (frames - 1) * config.hop + config.window]  # no frame sees the padding:
    counts = [1 + (len(waveform) - config.window) // config.hop for waveform in waveforms]
    bank = log_mel(batch, config)
    known = torch.arange(bank.shape[1], device=bank.device) < torch.tensor(counts, device=bank.device).unsqueeze(1)  # (B, frames)
    padded = F.pad(bank * known.unsqueeze(-1), (0, 0, 0, frames - bank.shape[1]))  # those that do become zeros
    return ((padded - loudness.mean) / (2 * loudness.std)).unsqueeze(1)


def clip_frames(total: int, fps: float, *, frames: int = 8, rate: float = 2.0, start: float = 0.0) -> Tensor:
    """Return the numbers of the frames that make a clip, (frames,) int64: two a second, from `start` seconds on; a video that ends before
    is repeated from there."""
    first = min(int(start * fps + ROUNDING), total - 1)
    numbers = first + (torch.arange(frames, dtype=torch.float64) * (fps / rate)).floor().long()
    available = max(int((numbers < total).sum()), 1)
    return numbers[torch.arange(frames) % available]


def normalise_clip(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (T, H, W, 3) → (3, T, size, size), normalised: squeezed to a square, whatever the aspect, without antialiasing."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    colours = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return colours.transpose(0, 1)
