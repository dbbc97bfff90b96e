"""Windows of a job: stretches of its sound, clips of its video, or both side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Clip, Preprocess, Sound
from models.layers.stepwise import Tensors, UnusableInput
from models.media import audio_windows
from models.media.fbank import FbankConfig
from models.media.video import ClipLimits, bytes_ahead, decoder_bytes
from models.systems.clips.account import clip_account
from models.systems.clips.frame_reader import GivenFrames, ViewFrames
from models.systems.mavil.log_mel_stats import Loudness
from models.systems.mavil.preprocessing import ROUNDING, clip_frames, normalise_clip, spectrograms


@dataclass(frozen=True)
class Inputs:
    """One window. None: the network is not asked about it."""

    sound: Tensor | None = None
    """Samples (n,)."""
    clip: Tensor | None = None
    """Normalised frames (3, T, S, S)."""


class Source(Protocol):
    """Windows by number."""

    @property
    def total(self) -> int:
        """Number of windows."""

    @property
    def nbytes(self) -> int:
        """Memory that it keeps, in bytes."""

    @property
    def seconds(self) -> Tensor | None:
        """Return the times of the frames of each window, float64 (windows, T); None where no video is seen."""

    def account(self) -> dict[str, Tensor]:
        """Return what `clip_account` does."""

    def is_ready(self, window: int) -> bool:
        """Whether nothing has to be waited for."""

    def take(self, window: int, until: float) -> Inputs:
        """Return a window. The same one may be taken again.

        until: monotonic seconds until which it may be waited for. Raises NotYet, and UnusableInput for a video that cannot be read."""

    def close(self) -> None:
        """End what reads ahead."""


@dataclass(frozen=True)
class Listener:
    """How the sound of a bundle is cut into windows, and windows become spectrograms."""

    sound: Sound

    @cached_property
    def bank(self) -> FbankConfig:
        return FbankConfig(sample_rate=self.sound.sample_rate, mel_bins=self.sound.mel_bins, high_hz=self.sound.sample_rate / 2)

    @property
    def seconds(self) -> float:
        """Seconds from the begin of a window to that of the next one."""
        return audio_windows.stride(self.sound) / self.sound.sample_rate

    def cut(self, sound: Tensor, window: int) -> Tensor:
        """Return the samples that the frames of one window cover: the last frames reach into the next window."""
        begin = window * audio_windows.stride(self.sound)
        return sound[begin : begin + (self.sound.frames - 1) * self.bank.hop + self.bank.window]

    def __call__(self, sounds: list[Tensor]) -> Tensor:
        """Return the spectrograms of windows, (B, 1, frames, mel bins), normalised."""
        return spectrograms(sounds, self.sound.frames, Loudness(self.sound.mean, self.sound.std), self.bank)


@dataclass(frozen=True)
class SoundSource:
    """Consecutive windows of a sound."""

    sound: Tensor
    """Samples (n,)."""
    listener: Listener
    total: int
    seconds: None = None

    @property
    def nbytes(self) -> int:
        return self.sound.nbytes

    @property
    def heard_s(self) -> float:
        """Seconds that the windows cover."""
        rate = self.listener.sound.sample_rate
        return min(len(self.sound) / rate, self.total * self.listener.seconds)

    def account(self) -> dict[str, Tensor]:
        return clip_account(None, sound_s=self.heard_s)

    def is_ready(self, window: int) -> bool:
        return True

    def take(self, window: int, until: float = math.inf) -> Inputs:
        return Inputs(sound=self.listener.cut(self.sound, window))

    def close(self) -> None:
        """Nothing reads ahead."""


@dataclass(frozen=True)
class ClipSource:
    """Clips of a video, each frame squeezed into the network's square."""

    frames: ViewFrames | GivenFrames
    """Those of each clip by number, each once."""
    order: Sequence[Sequence[int]]
    """For each clip, where among them its frames are: a short video is repeated."""
    nbytes: int
    seconds: Tensor | None = None
    """Times of the frames of each clip, at the video's mean rate, float64 (clips, T)."""
    video_s: float = 0.0
    """Seconds of the part that the clips are spread over."""

    @property
    def total(self) -> int:
        return len(self.order)

    def account(self) -> dict[str, Tensor]:
        return clip_account(self.frames, self.video_s)

    def is_ready(self, window: int) -> bool:
        return self.frames.is_ready(window)

    def take(self, window: int, until: float) -> Inputs:
        frames = self.frames.take(window, until)
        return Inputs(clip=torch.stack([frames[place] for place in self.order[window]], dim=1))

    def close(self) -> None:
        self.frames.close()


@dataclass(frozen=True)
class PairSource:
    """Windows of a sound, and beside each the clip that begins with it."""

    sound: SoundSource
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

    def account(self) -> dict[str, Tensor]:
        return clip_account(self.clips.frames, self.clips.video_s, self.sound.heard_s)

    def is_ready(self, window: int) -> bool:
        return self.clips.is_ready(window)

    def take(self, window: int, until: float) -> Inputs:
        return Inputs(self.sound.take(window).sound, self.clips.take(window, until).clip)

    def close(self) -> None:
        self.clips.close()


@dataclass(frozen=True)
class Sources:
    """How the jobs of one bundle become sources."""

    listener: Listener
    clip: Clip | None
    pixels: Preprocess | None
    """Both None in a bundle that hears only."""

    def of(self, job: Tensors, asked: Mapping[str, Any], *, hears: bool, sees: bool) -> Source:
        """Return the windows of a job: `sound` float32 (n,); `video` uint8 (bytes,) with `info` float64 (5,), or `frames` uint8
        (T, H, W, 3), the one clip; or both.

        asked: `start_s`, `end_s`; `windows` of sound, all of it by default; `views`, clips of a video without sound. Raises UnusableInput.
        """
        start, end = float(asked.get("start_s") or 0.0), asked.get("end_s")
        sound = self._sound(job["sound"], start, end, asked.get("windows")) if hears else None
        if not sees:
            assert sound is not None
            return sound
        if self.pixels is None or self.clip is None:
            raise UnusableInput("video: this bundle does not say how frames are prepared")
        count = sound.total if sound is not None else int(asked.get("views") or 1)
        if "frames" in job:
            clips = self._given(job["frames"], count)
        else:
            end = min(float(job["info"][4]), math.inf if end is None else float(end))
            latest = max(start, end - self.clip.frames * self.clip.stride / self.clip.rate)
            if sound is None:
                starts = np.linspace(start, latest, count).tolist()  # one: from the start
            else:
                starts = [min(start + window * self.listener.seconds, latest) for window in range(count)]
            clips = replace(self._clips(job, self.clip, starts, end), video_s=end - start)
        return clips if sound is None else PairSource(sound, clips)

    def _sound(self, sound: Tensor, start: float, end: float | None, windows: int | None) -> SoundSource:
        rate = self.listener.sound.sample_rate
        stop = len(sound) if end is None else round(min(len(sound), end * rate))
        part = sound[round(start * rate) : stop]
        least = self.listener.bank.window
        if len(part) < least:
            field = "audio" if len(sound) < least else "start_s" if stop == len(sound) else "end_s"
            raise UnusableInput(f"{field}: {len(part)} samples at {rate} Hz are too few: one analysis window has {least}")
        fitting = audio_windows.count(len(part), self.listener.sound)
        return SoundSource(part, self.listener, min(fitting, windows or fitting))

    def _given(self, frames: Tensor, count: int) -> ClipSource:
        prepared = [self._prepared(frame) for frame in frames.cpu().numpy()]
        return ClipSource(GivenFrames(prepared), [range(len(prepared))] * count, sum(frame.nbytes for frame in prepared))

    def _clips(self, job: Tensors, clip: Clip, starts: Sequence[float], end: float) -> ClipSource:
        assert self.pixels is not None
        width, height, fps, frames, _ = job["info"].tolist()
        total = max(1, min(int(frames), math.ceil(end * fps - ROUNDING)))
        rate = clip.rate / clip.stride
        clips = [clip_frames(total, fps, frames=clip.frames, rate=rate, start=start).tolist() for start in starts]
        numbers = [sorted(set(frames_of)) for frames_of in clips]
        order = [[mine.index(number) for number in frames_of] for mine, frames_of in zip(numbers, clips, strict=True)]
        video, limits = job["video"].cpu().numpy(), ClipLimits.of_accepted(int(width), int(height))
        read = ViewFrames(video, numbers, fps, limits, self._prepared, 3 * 4 * self.pixels.image_size**2)
        nbytes = video.nbytes + decoder_bytes(int(width), int(height)) + bytes_ahead(int(width), int(height)) + read.nbytes
        return ClipSource(read, order, nbytes, torch.tensor(clips, dtype=torch.float64) / fps)

    def _prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) → (3, S, S), normalised."""
        assert self.pixels is not None
        return normalise_clip(torch.from_numpy(pixels)[None], self.pixels.image_size, self.pixels.mean, self.pixels.std)[:, 0]
