"""Decoding of audio with FFmpeg: each channel resampled, then their mean, in chunks.

The mean comes last, since FFmpeg's own mono weights channels by their positions, which makes stereo louder by √2. Files of strangers are
decoded in a confined process (`models.media.audio_program`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import inf

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from numpy.typing import NDArray

from models.media.video_program import MediaRefused, packets
from models.media.video_program import seconds as seconds_of

MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 384_000
"""Maximum number of channels, and of samples per second."""
MIN_SAMPLE_RATE = 100
"""Minimum number of samples per second; FFmpeg's resampler accepts about 20."""
SLACK_S = 0.1
"""Tolerance in seconds of gaps and limits: codecs pad a sound to whole frames, and times are rounded."""
MAX_SILENT_FRAME_S = 1.0
"""Maximum length of a frame of silence, in seconds."""
MAX_BAD_PACKETS = 5_000
MAX_AMPLITUDE = 64.0
"""Maximum absolute value of samples: full scale is 1, and 36 dB above it are accepted."""
RESAMPLER = {"filter_size": "64", "cutoff": "0.97", "linear_interp": "1", "kaiser_beta": "9"}
"""Options of libswresample: at 16 kHz it passes frequencies below 7 kHz unchanged, and aliases are 90 dB weaker. If the rates have no small
ratio, it interpolates between stored phases."""


class Resampler:
    """Graph of FFmpeg that resamples sound of one format, each channel by itself."""

    def __init__(self, first: AudioFrame, rate: int) -> None:
        """first: a frame of the format; rate: samples per second."""
        self.format = _format(first)
        self._graph = Graph()
        self._graph.threads = 1
        layout, sampling, sample_format = self.format
        source = self._graph.add(
            "abuffer", sample_rate=str(sampling), sample_fmt=sample_format, channel_layout=layout, time_base=f"1/{sampling}"
        )
        resample = self._graph.add("aresample", sample_rate=str(rate), out_sample_fmt="flt", **RESAMPLER)
        source.link_to(resample)
        resample.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        """Yield the samples that are known so far, float32 (n,): the mean of the channels. frame: None at the end."""
        if frame is not None:
            frame.pts = None  # samples are consecutive: gaps are filled with silence already
        self._graph.push(frame)
        while True:
            try:
                resampled = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(resampled, AudioFrame)
            packed = resampled.to_ndarray()  # PyAV reads beyond the planes of eight planar channels
            yield packed.reshape(-1, resampled.layout.nb_channels).mean(axis=1, dtype=np.float32)


def audio_stream(container: InputContainer) -> AudioStream:
    """Return the first audio stream. Raises MediaRefused."""
    streams = container.streams.audio
    if not streams:
        raise MediaRefused("no-sound", "it has no sound" + (": images alone" if container.streams.video else ""))
    stream = next((stream for stream in streams if stream.codec_context is not None), None)
    if stream is None:
        raise MediaRefused("not-a-sound", "its sound is of a codec that is not decoded here")
    return stream


def decode_mono(container: InputContainer, rate: int, seconds: float = inf) -> Iterator[NDArray[np.float32]]:
    """Yield the sound of a file at `rate` samples per second, in chunks of float32 (n,), in [-1, 1] unless the file has larger values.

    The sound of a video begins with its first frame, so that times agree: silence fills gaps, also the one before sound that begins later,
    and sound before that frame is omitted. A file whose format changes is resampled in parts. seconds: maximum length. Raises MediaRefused,
    and FFmpeg's errors.
    """
    origin = _first_frame_s(container)
    frames = _frames(container, audio_stream(container), seconds, origin)
    first = next(frames, None)
    if first is None:
        return
    lead = round(_offset_s(origin, first) * rate)
    if lead > 0:
        yield np.zeros(lead, np.float32)
    ignored = max(0, -lead)
    for chunk in _resample(chain([first], frames), rate):
        if ignored < len(chunk):
            yield chunk[ignored:]
        ignored = max(0, ignored - len(chunk))
    if ignored:
        raise MediaRefused("broken", "its sound ends before its first frame; send the sound as a file of its own")


def _resample(frames: Iterator[AudioFrame], rate: int) -> Iterator[NDArray[np.float32]]:
    """Resample frames, in chunks of float32 (n,)."""
    resampler: Resampler | None = None
    for frame in frames:
        if resampler is not None and resampler.format != _format(frame):
            yield from map(_require_valid, resampler.push(None))
            resampler = None
        resampler = resampler or Resampler(frame, rate)
        yield from map(_require_valid, resampler.push(frame))
    if resampler is not None:
        yield from map(_require_valid, resampler.push(None))


def _first_frame_s(container: InputContainer) -> float | None:
    """Return the time of the first frame of the video in the file, in seconds; None without a video or without that time."""
    videos = [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    start = videos[0].start_time if videos else None
    return None if start is None else seconds_of(start, videos[0].time_base)


def _offset_s(origin: float | None, frame: AudioFrame) -> float:
    """Return the seconds from `origin` to the first sample of a frame, negative if that is earlier; 0 if one of the times is unknown."""
    return 0.0 if origin is None or frame.pts is None else seconds_of(frame.pts, frame.time_base) - origin


def _frames(container: InputContainer, stream: AudioStream, max_seconds: float, origin: float | None) -> Iterator[AudioFrame]:
    """Yield decoded frames within the limits, and silent ones for gaps in the sound of a video; silence before the sound counts.

    origin: time of the first frame of that video, in seconds.
    """
    context = stream.codec_context
    if context.sample_rate:  # 0: the sound begins after the part that FFmpeg has read
        _check_format(context.layout.nb_channels, context.sample_rate)
    seconds, good, bad = 0.0, 0, 0
    end = 0.0  # seconds from the first frame of the video to the next sample
    for packet in packets(container, [stream]):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            bad += 1
            if bad > MAX_BAD_PACKETS:
                raise MediaRefused("broken", f"more than {MAX_BAD_PACKETS} packets of it are damaged") from None
            continue
        for frame in frames:
            _check_format(frame.layout.nb_channels, frame.sample_rate)
            start = _offset_s(origin, frame)
            if not good:
                seconds, end = max(0.0, start), start
            gap = start - end if frame.pts is not None and start - end > SLACK_S else 0.0
            good += 1
            seconds += gap + frame.samples / frame.sample_rate
            end += gap + frame.samples / frame.sample_rate
            if seconds > max_seconds + SLACK_S:
                raise MediaRefused("too-much", f"it is longer than the limit of {max_seconds:g} seconds (OPSIN_MAX_AUDIO_SECONDS)")
            yield from _silence(frame, gap)
            yield frame
    if bad > good:
        raise MediaRefused("broken", "most of it is damaged" if good else "none of it can be decoded")


def _silence(like: AudioFrame, seconds: float) -> Iterator[AudioFrame]:
    """Yield silent frames of the format of another."""
    samples = round(seconds * like.sample_rate)
    max_samples = round(MAX_SILENT_FRAME_S * like.sample_rate)
    for start in range(0, samples, max(1, max_samples)):
        frame = AudioFrame(like.format.name, like.layout.name, min(max_samples, samples - start))
        frame.sample_rate = like.sample_rate
        for plane in frame.planes:
            plane.update((b"\x80" if like.format.name in ("u8", "u8p") else b"\0") * plane.buffer_size)
        yield frame


def _check_format(channels: int, rate: int) -> None:
    if channels > MAX_CHANNELS:
        raise MediaRefused("too-much", f"{channels} channels are above the limit of {MAX_CHANNELS}")
    if rate > MAX_SAMPLE_RATE:
        raise MediaRefused("too-much", f"{rate} samples a second are above the limit of {MAX_SAMPLE_RATE}")
    if rate < MIN_SAMPLE_RATE:
        raise MediaRefused("broken", f"{rate} samples a second are too few: {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are accepted")


def _format(frame: AudioFrame) -> tuple[str, int, str]:
    """Return channel layout, samples per second and sample format."""
    return frame.layout.name, frame.sample_rate, frame.format.name


def _require_valid(chunk: NDArray[np.float32]) -> NDArray[np.float32]:
    peak = float(np.abs(chunk).max(initial=0.0))
    if not np.isfinite(peak):
        raise MediaRefused("broken", "some samples are infinite, or not a number")
    if peak > MAX_AMPLITUDE:
        raise MediaRefused("broken", f"a sample is {peak:g} where full scale is 1: it is damaged, or its samples must be scaled to -1..1")
    return chunk
