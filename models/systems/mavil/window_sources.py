"""Windows of a job: intervals of its audio, clips of its video, or both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Clip, Preprocess, Sound
from models.layers.stepwise import InvalidInput, Tensors
from models.media import audio
from models.media.fbank import FbankConfig
from models.media.video import ClipLimits, bytes_ahead, decoder_bytes
from models.systems.clips.frame_reader import InMemoryFrames, ViewFrameReader, clip_stats
from models.systems.mavil.preprocessing import FRAME_TOLERANCE, clip_frame_indices, normalise_clip, spectrograms
from models.systems.mavil.system import LogMelStats


@dataclass(frozen=True)
class WindowInput:
    """Input of one window; None for the half that is not used."""

    sound: Tensor | None = None
    """Samples (n,)."""
    clip: Tensor | None = None
    """Normalised frames (3, T, S, S)."""


@dataclass(frozen=True)
class SpectrogramWindows:
    """Windows of a bundle's audio and their spectrograms."""

    sound: Sound

    @cached_property
    def bank(self) -> FbankConfig:
        return FbankConfig(sample_rate=self.sound.sample_rate, mel_bins=self.sound.mel_bins, high_hz=self.sound.sample_rate / 2)

    @property
    def hop_s(self) -> float:
        """Hop between windows, in seconds."""
        return audio.window_samples(self.sound) / self.sound.sample_rate

    def slice_window(self, sound: Tensor, window: int) -> Tensor:
        """Return the samples (n,) that the frames of one window cover: the last frames extend into the next window."""
        start = window * audio.window_samples(self.sound)
        return sound[start : start + (self.sound.frames - 1) * self.bank.hop + self.bank.window]

    def __call__(self, sounds: list[Tensor]) -> Tensor:
        """Return the spectrograms of windows, (B, 1, frames, mel bins), normalised."""
        return spectrograms(sounds, self.sound.frames, LogMelStats(self.sound.mean, self.sound.std), self.bank)


@dataclass(frozen=True)
class AudioSource:
    sound: Tensor
    """Samples (n,)."""
    windows: SpectrogramWindows
    total: int
    seconds: None = None

    @property
    def nbytes(self) -> int:
        return self.sound.nbytes

    @property
    def covered_s(self) -> float:
        rate = self.windows.sound.sample_rate
        return min(len(self.sound) / rate, self.total * self.windows.hop_s)

    def stats(self) -> dict[str, Tensor]:
        return clip_stats(None, sound_s=self.covered_s)

    def is_ready(self, window: int) -> bool:
        return True

    def take(self, window: int, deadline: float = math.inf) -> WindowInput:
        return WindowInput(sound=self.windows.slice_window(self.sound, window))

    def close(self) -> None:
        """Do nothing, since nothing is read ahead."""


@dataclass(frozen=True)
class ClipSource:
    """Clips of a video, each frame squeezed into the network's square."""

    frames: ViewFrameReader | InMemoryFrames
    """Frames of each clip by index, each once."""
    order: Sequence[Sequence[int]]
    """Indices into these frames for each clip, since a short video repeats."""
    nbytes: int
    seconds: Tensor | None = None
    """Times of the frames of each clip, at the video's mean rate, float64 (clips, T)."""
    video_s: float = 0.0
    """Duration of the part that the clips are spread over, in seconds."""

    @property
    def total(self) -> int:
        return len(self.order)

    def stats(self) -> dict[str, Tensor]:
        return clip_stats(self.frames, self.video_s)

    def is_ready(self, window: int) -> bool:
        return self.frames.is_ready(window)

    def take(self, window: int, deadline: float) -> WindowInput:
        frames = self.frames.take(window, deadline)
        return WindowInput(clip=torch.stack([frames[index] for index in self.order[window]], dim=1))

    def close(self) -> None:
        self.frames.close()


@dataclass(frozen=True)
class AudioVideoSource:
    """Audio windows, each with the clip that starts at the same time."""

    sound: AudioSource
    clips: ClipSource

    @property
    def total(self) -> int:
        return self.sound.total

    @property
    def seconds(self) -> Tensor | None:
        return self.clips.seconds

    @property
    def nbytes(self) -> int:
        return self.sound.nbytes + self.clips.nbytes

    def stats(self) -> dict[str, Tensor]:
        return clip_stats(self.clips.frames, self.clips.video_s, self.sound.covered_s)

    def is_ready(self, window: int) -> bool:
        return self.clips.is_ready(window)

    def take(self, window: int, deadline: float) -> WindowInput:
        return WindowInput(self.sound.take(window).sound, self.clips.take(window, deadline).clip)

    def close(self) -> None:
        self.clips.close()


WindowSource = AudioSource | ClipSource | AudioVideoSource
"""Windows of a job, by index. `take` waits until a deadline in monotonic seconds and may be called again for the same window; it raises
FrameNotReady, and InvalidInput for a video that cannot be read."""


@dataclass(frozen=True)
class WindowSourceFactory:
    windows: SpectrogramWindows
    clip: Clip | None
    pixels: Preprocess | None
    """Clip and preprocessing; both None in an audio-only bundle."""

    def make(self, job: Tensors, options: Mapping[str, Any], *, with_audio: bool, with_video: bool) -> WindowSource:
        """Return the windows of a job: `sound` float32 (n,); `video` uint8 (bytes,) with `info` float64 (5,), or `frames` uint8 (T, H, W,
        3), the only clip; or both.

        options: `start_s`, `end_s`; `windows` of audio, all by default; `views`, clips of a video without audio. Raises InvalidInput.
        """
        start, end = float(options.get("start_s") or 0.0), options.get("end_s")
        sound = self._audio(job["sound"], start, end, options.get("windows")) if with_audio else None
        if not with_video:
            assert sound is not None
            return sound
        if self.pixels is None or self.clip is None:
            raise InvalidInput("video: this bundle does not define how frames are prepared")
        count = sound.total if sound is not None else int(options.get("views") or 1)
        if "frames" in job:
            clips = self._clip_from_frames(job["frames"], count)
        else:
            end = min(float(job["info"][4]), math.inf if end is None else float(end))
            last_start = max(start, end - self.clip.frames * self.clip.stride / self.clip.rate)
            if sound is None:
                starts = np.linspace(start, last_start, count).tolist()  # one: from the start
            else:
                starts = [min(start + window * self.windows.hop_s, last_start) for window in range(count)]
            clips = replace(self._video_clips(job, self.clip, starts, end), video_s=end - start)
        return clips if sound is None else AudioVideoSource(sound, clips)

    def _audio(self, sound: Tensor, start: float, end: float | None, windows: int | None) -> AudioSource:
        rate = self.windows.sound.sample_rate
        stop = len(sound) if end is None else round(min(len(sound), end * rate))
        part = sound[round(start * rate) : stop]
        min_samples = self.windows.bank.window
        if len(part) < min_samples:
            field = "audio" if len(sound) < min_samples else "start_s" if stop == len(sound) else "end_s"
            raise InvalidInput(f"{field}: {len(part)} samples at {rate} Hz are too few: one analysis window has {min_samples}")
        window_count = audio.count_windows(len(part), self.windows.sound)
        return AudioSource(part, self.windows, min(window_count, windows or window_count))

    def _clip_from_frames(self, frames: Tensor, count: int) -> ClipSource:
        prepared = [self._prepare(frame) for frame in frames.cpu().numpy()]
        return ClipSource(InMemoryFrames(prepared), [range(len(prepared))] * count, sum(frame.nbytes for frame in prepared))

    def _video_clips(self, job: Tensors, clip: Clip, starts: Sequence[float], end: float) -> ClipSource:
        assert self.pixels is not None
        width, height, fps, frames, _ = job["info"].tolist()
        total = max(1, min(int(frames), math.ceil(end * fps - FRAME_TOLERANCE)))
        rate = clip.rate / clip.stride
        clips = [clip_frame_indices(total, fps, frames=clip.frames, rate=rate, start=start).tolist() for start in starts]
        frame_indices = [sorted(set(clip_indices)) for clip_indices in clips]
        order = [
            [unique_indices.index(index) for index in clip_indices]
            for unique_indices, clip_indices in zip(frame_indices, clips, strict=True)
        ]
        video, limits = job["video"].cpu().numpy(), ClipLimits.from_accepted(int(width), int(height))
        view_frames = ViewFrameReader(video, frame_indices, fps, limits, self._prepare, 3 * 4 * self.pixels.image_size**2)
        nbytes = video.nbytes + decoder_bytes(int(width), int(height)) + bytes_ahead(int(width), int(height)) + view_frames.nbytes
        return ClipSource(view_frames, order, nbytes, torch.tensor(clips, dtype=torch.float64) / fps)

    def _prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Normalise a frame: (H, W, 3) → (3, S, S)."""
        assert self.pixels is not None
        return normalise_clip(torch.from_numpy(pixels)[None], self.pixels.image_size, self.pixels.mean, self.pixels.std)[:, 0]
