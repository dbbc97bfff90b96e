"""Preparation of audio and video for MAViL and Audio-MAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.media.fbank import FbankConfig, log_mel
from models.systems.mavil.system import AUDIOSET, LogMelStats

FRAME_TOLERANCE = 1e-6
"""Fraction of a frame by which times may differ through rounding."""


def spectrogram(waveform: Tensor, frames: int, stats: LogMelStats = AUDIOSET, config: FbankConfig | None = None) -> Tensor:
    """Compute a log-mel spectrogram: (channels, samples) or (samples,) at 16 kHz in [-1, 1] → (1, frames, mel bins), normalised.

    Truncated, or padded with zeros before normalisation, as published, so that silence and padding differ. AudioSet has 1024 frames, ESC-50
    512, Speech Commands 128. Raises ValueError for audio shorter than one analysis window.
    """
    return spectrograms([waveform.mean(dim=0) if waveform.dim() == 2 else waveform], frames, stats, config)[0]


def spectrograms(waveforms: Sequence[Tensor], frames: int, stats: LogMelStats = AUDIOSET, config: FbankConfig | None = None) -> Tensor:
    """Compute log-mel spectrograms of mono waveforms (samples,) of any lengths → (B, 1, frames, mel bins), normalised."""
    config = config or FbankConfig()
    shortest = min(len(waveform) for waveform in waveforms)
    if shortest < config.window:
        raise ValueError(f"audio of {shortest} samples is shorter than one window of {config.window}")
    centred = [waveform - waveform.mean() for waveform in waveforms]
    batch = pad_sequence(centred, batch_first=True)[:, : (frames - 1) * config.hop + config.window]  # no frame includes padding:
    counts = [1 + (len(waveform) - config.window) // config.hop for waveform in waveforms]
    log_mels = log_mel(batch, config)
    valid = torch.arange(log_mels.shape[1], device=log_mels.device) < torch.tensor(counts, device=log_mels.device).unsqueeze(
        1
    )  # (B, frames)
    padded = F.pad(log_mels * valid.unsqueeze(-1), (0, 0, 0, frames - log_mels.shape[1]))  # frames that would are set to zero
    return ((padded - stats.mean) / (2 * stats.std)).unsqueeze(1)


def clip_frame_indices(total: int, fps: float, *, frames: int = 8, rate: float = 2.0, start: float = 0.0) -> Tensor:
    """Return the indices of a clip's frames, (frames,) int64: `rate` per second, from `start` seconds. A video that ends earlier
    repeats."""
    first = min(int(start * fps + FRAME_TOLERANCE), total - 1)
    indices = first + (torch.arange(frames, dtype=torch.float64) * (fps / rate)).floor().long()
    available = max(int((indices < total).sum()), 1)
    return indices[torch.arange(frames) % available]


def normalise_clip(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise a clip: uint8 (T, H, W, 3) → (3, T, size, size), squeezed to a square without antialiasing."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    colours = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return colours.transpose(0, 1)
