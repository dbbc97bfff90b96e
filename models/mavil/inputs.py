"""Preparation of sound and video for MAViL and Audio-MAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mavil.loudness import AUDIOSET, Loudness
from models.media.fbank import FbankConfig, log_mel


def spectrogram(waveform: Tensor, frames: int, loudness: Loudness = AUDIOSET, config: FbankConfig | None = None) -> Tensor:
    """(channels, samples) or (samples,) at 16 kHz in [-1, 1] → (1, frames, mel bins), normalised.

    Cut at the end, or padded with zeros before normalising, as published, so that silence and padding differ. AudioSet has 1024 frames,
    ESC-50 512, Speech Commands 128.
    """
    mono = waveform.mean(dim=0) if waveform.dim() == 2 else waveform
    bank = log_mel(mono - mono.mean(), config)[:frames]
    padded = F.pad(bank, (0, 0, 0, frames - bank.shape[0]))
    return ((padded - loudness.mean) / (2 * loudness.std)).unsqueeze(0)


def clip_frames(total: int, fps: float, *, frames: int = 8, rate: float = 2.0) -> Tensor:
    """Indices of the frames that make a video's clip, (frames,) int64: two a second, from the start; a short video is repeated."""
    step = fps / rate
    numbers = (torch.arange(frames, dtype=torch.float64) * step).floor().long()
    available = max(int((numbers < total).sum()), 1)
    return numbers[torch.arange(frames) % available]


def normalise_clip(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (T, H, W, 3) → (3, T, size, size), normalised: squeezed to a square, whatever the aspect, without antialiasing."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    colours = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return colours.transpose(0, 1)
