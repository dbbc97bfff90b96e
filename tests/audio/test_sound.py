"""Sounds by their bytes: every format, its samples, and what is refused."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.media import audio
from models.media.audio import SoundLimits
from server.media.limits import RecordingError
from server.media.recordings import read_sound as read
from tests.support.audio import film, tag, tones, wav, write_file
from tests.support.videos import clip, every, sound_alone

LIMITS = SoundLimits()
RATE = 16_000
TONE = np.stack([tones(1.0, 44_100, 440.0, 3000.0)] * 2)
"""Both channels alike."""

LOSSLESS = [
    ("wav", "pcm_s16le"),
    ("wav", "pcm_s24le"),
    ("wav", "pcm_f32le"),
    ("wav", "pcm_mulaw"),
    ("flac", "flac"),
    ("aiff", "pcm_s16be"),
    ("caf", "pcm_s16le"),
    ("mov", "pcm_s16le"),
    ("mp4", "alac"),
    ("matroska", "flac"),
    ("avi", "pcm_s16le"),
]
LOSSY = [
    ("mp3", "libmp3lame"),
    ("mp2", "mp2"),
    ("ogg", "vorbis"),
    ("adts", "aac"),
    ("mp4", "aac"),
    ("mpegts", "aac"),
    ("mpeg", "mp2"),
    ("flv", "aac"),
    ("asf", "wmav2"),
]


def refusal(content: bytes, limits: SoundLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(RecordingError) as error:
        read(content, RATE, limits)
    return error.value.problem, str(error.value)


def level(samples: NDArray[np.float32]) -> float:
    """Return the root mean square without the edges."""
    return float(np.sqrt(np.mean(np.square(samples[2000:-2000], dtype=np.float64))))


def share(samples: NDArray[np.float32], *hertz: float) -> float:
    """Return the share of the power that lies within 10 Hz of the tones."""
    part = samples[2000:-2000] * np.hanning(len(samples) - 4000)
    power = np.abs(np.fft.rfft(part)) ** 2
    bins = np.fft.rfftfreq(len(part), 1 / RATE)
    return float(sum(power[np.abs(bins - one) < 10].sum() for one in hertz) / power.sum())


@pytest.mark.parametrize(("container", "codec"), LOSSLESS)
def test_lossless_formats_are_decoded_exactly(container: str, codec: str) -> None:
    samples = read(write_file(TONE, 44_100, container, codec), RATE, LIMITS)
    assert samples.dtype == np.float32 and abs(len(samples) - RATE) <= 1
    expected = tones(1.0, RATE, 440.0, 3000.0)
    error = np.abs(samples[500:15_500] - expected[500:15_500]).max()
    assert error < (0.02 if codec == "pcm_mulaw" else 1e-4)


@pytest.mark.parametrize(("container", "codec"), LOSSY)
def test_lossy_formats_keep_tones_and_level(container: str, codec: str) -> None:
    samples = read(write_file(TONE, 44_100, container, codec), RATE, LIMITS)
    assert abs(len(samples) - RATE) <= RATE // 10
    assert share(samples, 440.0, 3000.0) > 0.995
    assert level(samples) == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize("container", ["ogg", "webm", "matroska"])
def test_opus_is_decoded(container: str) -> None:
    """Opus has its own sampling rates."""
    samples = read(write_file(np.stack([tones(1.0, 48_000, 440.0)] * 2), 48_000, container, "libopus"), RATE, LIMITS)
    assert abs(len(samples) - RATE) <= 400
    assert share(samples, 440.0) > 0.995 and level(samples) == pytest.approx(0.2 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("channels", range(1, 9))
def test_any_number_of_channels_is_averaged(channels: int) -> None:
    """Also where nothing says which one is where."""
    tone = tones(0.5, 48_000, 1000.0).astype(np.float32)
    rows = np.stack([tone, *[-tone] * (channels - 1)], axis=1)
    assert level(read(wav(rows, 48_000), RATE, LIMITS)) == pytest.approx(
        0.2 / np.sqrt(2) * abs(2 - channels) / channels, rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_channels_are_averaged(channels: int) -> None:
    """A tone in one of several channels has its share of the level, and tones in all of them have their own level: FFmpeg's mono would
    be √2 louder."""
    tone, silence = tones(0.5, 48_000, 1000.0), np.zeros(24_000)
    alike = read(write_file(np.stack([tone] * channels), 48_000, "wav", "pcm_f32le"), RATE, LIMITS)
    assert level(alike) == pytest.approx(0.2 / np.sqrt(2), rel=1e-3)
    coded = read(write_file(np.stack([tone] * channels), 48_000, "flac", "flac"), RATE, LIMITS)
    assert level(coded) == pytest.approx(0.2 / np.sqrt(2), rel=1e-3)
    first = read(write_file(np.stack([tone, *[silence] * (channels - 1)]), 48_000, "wav", "pcm_f32le"), RATE, LIMITS)
    assert level(first) == pytest.approx(0.2 / np.sqrt(2) / channels, rel=1e-3)


def test_opposite_channels_are_silent() -> None:
    tone = tones(0.5, 44_100, 1000.0)
    assert np.abs(read(write_file(np.stack([tone, -tone]), 44_100, "wav", "pcm_f32le"), RATE, LIMITS)).max() < 1e-6


def test_sound_at_the_rate_of_the_network_comes_as_it_is() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    assert np.array_equal(read(wav(noise, RATE), RATE, LIMITS), noise)


def test_words_of_a_file_may_be_in_any_encoding() -> None:
    plain = wav(tones(0.2, 16_000, 440.0), 16_000)
    name = "Motörhead ".encode("latin-1")
    words = b"LIST" + (12 + len(name)).to_bytes(4, "little") + b"INFOINAM" + len(name).to_bytes(4, "little") + name
    tag = plain[:4] + (len(plain) - 8 + len(words)).to_bytes(4, "little") + plain[8:12] + words + plain[12:]
    np.testing.assert_array_equal(read(tag, 16_000, LIMITS), read(plain, 16_000, LIMITS))


def test_the_sound_of_a_video_is_read_and_one_without_is_refused() -> None:
    samples = read(clip(every(20, 20.0), sound=True), RATE, LIMITS)
    assert abs(len(samples) / RATE - 0.95) < 0.1 and level(samples) > 0.1
    assert read(sound_alone(), RATE, LIMITS).size > 0.4 * RATE
    assert refusal(clip(every(5, 10.0))) == ("no-sound", "it has no sound: images alone")
    assert refusal(clip(every(5, 10.0), container="ogg", codec="libvpx")) == ("no-sound", "it has no sound: images alone")


def tone_interval(film: bytes) -> tuple[float, float]:
    """Return the seconds at which the tone starts and ends."""
    loud = np.flatnonzero(np.abs(read(film, RATE, LIMITS)) > 0.05)
    return loud[0] / RATE, loud[-1] / RATE


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "aac"), ("matroska", "flac"), ("webm", "libopus"), ("mpegts", "aac"), ("avi", "pcm_s16le")]
)
def test_sound_and_video_share_one_clock(container: str, codec: str) -> None:
    at_once, later = (tone_interval(film(container, codec, video_s=0.0, sound_s=start)) for start in (0.0, 0.6))
    assert at_once == pytest.approx((0.0, 1.0), abs=0.06), "codecs smear a tone's ends"
    if container != "avi":  # which has no times
        assert later == pytest.approx((0.6, 1.6), abs=0.06)
        assert tone_interval(film(container, codec, video_s=0.4, sound_s=0.0)) == pytest.approx((0.0, 0.6), abs=0.06)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "flac"), ("matroska", "pcm_u8"), ("mpegts", "aac")])
def test_a_pause_of_a_sound_is_silence(container: str, codec: str) -> None:
    video = film(container, codec, video_s=0.0, sound_s=0.0, pause_s=1.0)
    assert tone_interval(video) == pytest.approx((0.0, 2.0), abs=0.06)
    samples = read(video, RATE, LIMITS)
    assert np.abs(samples[round(0.6 * RATE) : round(1.4 * RATE)]).max() < 0.01
    assert refusal(film(container, codec, video_s=0.0, sound_s=0.0, pause_s=500.0))[0] == "too-large"


@pytest.mark.parametrize(("container", "codec"), [("mpegts", "aac"), ("mpeg", "mp2")])
def test_a_sound_may_start_late_in_a_broadcast(container: str, codec: str) -> None:
    video = film(container, codec, video_s=0.0, sound_s=29.0, lasts_s=30.0)
    assert tone_interval(video) == pytest.approx((29.0, 30.0), abs=0.06)


def test_audio_that_ends_before_first_frame_is_refused() -> None:
    assert "before its first frame" in refusal(film("matroska", "flac", video_s=3.0, sound_s=0.0))[1]


@pytest.mark.parametrize("rate", [1, 20, 99])
def test_the_refusal_of_a_rate_names_the_accepted_ones(rate: int) -> None:
    assert "100 to 384000 are accepted" in refusal(wav(np.zeros(2 * rate, np.int16), rate))[1]


def test_silence_before_a_sound_counts_as_seconds() -> None:
    video = film("matroska", "flac", video_s=0.0, sound_s=3.0)
    assert refusal(video, SoundLimits(seconds=3.5))[0] == "too-large"
    assert len(read(video, RATE, SoundLimits(seconds=4.0))) == 4 * RATE


@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("adts", "aac"), ("ogg", "libopus")]
)
def test_the_intact_part_of_a_damaged_sound_is_decoded(container: str, codec: str) -> None:
    """The rest of a damaged sound is treated as that of a clip: half of a file, and one without its middle third, unless it is an Ogg."""
    content = write_file(np.stack([tones(12.0, 48_000, 440.0)] * 2), 48_000, container, codec)
    third = len(content) // 3
    half, holed = content[: len(content) // 2], content[:third] + bytes(third) + content[2 * third :]
    assert 0.7 * 6.0 < loud_seconds(half) < 1.05 * 6.0, "pages of an Ogg hold a second"
    if container == "ogg":
        assert refusal(holed)[1].startswith("the file is truncated or damaged")
    else:
        assert 0.9 * 8.0 < loud_seconds(holed) < 1.05 * 8.0


def loud_seconds(content: bytes) -> float:
    """Seconds of a sine of amplitude 0.2, which is above a quarter of that for 84 % of the time."""
    return float((np.abs(read(content, RATE, LIMITS)) > 0.05).sum() / (0.84 * RATE))


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("adts", "aac"), ("flac", "flac")])
def test_a_cover_in_front_of_a_sound_is_no_matter(container: str, codec: str) -> None:
    plain = write_file(TONE, 44_100, container, codec)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(file, "PNG")
    samples = read(tag(plain, file.getvalue()), RATE, LIMITS)
    assert np.array_equal(samples, read(plain, RATE, LIMITS))


def test_a_stream_whose_header_knows_no_end_is_read_to_its_end() -> None:
    tone = (2**14 * tones(0.5, RATE, 440.0)).astype(np.int16)
    assert len(read(wav(tone, RATE, says_bytes=2**32 - 1), RATE, LIMITS)) == RATE // 2


def test_chained_streams_of_other_formats_are_decoded_to_end() -> None:
    first = write_file(np.stack([tones(0.5, 48_000, 440.0)] * 2), 48_000, "adts", "aac")
    second = write_file(tones(0.5, 44_100, 440.0)[None], 44_100, "adts", "aac")
    samples = read(first + second, RATE, LIMITS)
    assert 0 < len(samples) - RATE < 2000 and share(samples, 440.0) > 0.95
    opus = [write_file(np.stack([tones(0.5, 48_000, 440.0)] * channels), 48_000, "ogg", "libopus") for channels in (2, 1)]
    assert refusal(b"".join(opus)) == ("corrupt-sound", "it uses a part of its format that is not decoded here")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n" + bytes(5000),
        np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes(),
        ("\ufeff" + "some words, in two bytes each " * 200).encode("utf-16-le"),
        b"GIF89a" + bytes(500),
        b"RIFF\x10\0\0\0WEBPVP8 " + bytes(500),
        b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"[playlist]\nFile1=/etc/passwd\n",
    ],
)
def test_files_that_are_not_sounds_are_refused(content: bytes) -> None:
    assert refusal(content)[0] == "not-a-sound"


def test_lists_are_refused_as_such() -> None:
    assert refusal(b"#EXTM3U\nfile:///etc/passwd\n") == ("not-a-sound", "a list that names other files: send the sound itself")


@pytest.mark.parametrize(
    ("samples", "sentence"), [(0, "it has no samples"), (1, "1 samples at 16000 Hz"), (399, "399 samples at 16000 Hz")]
)
def test_less_than_one_analysis_window_is_refused(samples: int, sentence: str) -> None:
    kind, message = refusal(wav(np.full(samples, 0.1, np.float32), RATE))
    assert kind == "corrupt-sound" and message.startswith(sentence)


def test_one_analysis_window_is_enough() -> None:
    assert len(read(wav(np.full(400, 0.1, np.float32), RATE), RATE, LIMITS)) == 400


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    samples = np.zeros((8000, 2), np.float32)
    samples[4000, 1] = value
    assert refusal(wav(samples, 44_100)) == ("corrupt-sound", "some samples are infinite, or not a number")


def test_samples_far_above_full_scale_are_refused() -> None:
    sentence = "a sample is 20000 where full scale is 1: it is damaged, or its samples must be scaled to -1..1"
    assert refusal(wav(np.full(8000, 20_000, np.float32), RATE)) == ("corrupt-sound", sentence)
    assert read(wav(np.full(8000, 4, np.float32), RATE), RATE, LIMITS).max() == 4


@pytest.mark.parametrize(
    ("shape", "rate", "sentence"),
    [
        ((3000, 9), 16_000, "9 channels are above the limit of 8"),
        ((3000, 60), 16_000, "60 channels are above the limit of 8"),
        ((30_000, 1), 384_001, "384001 samples a second are above the limit of 384000"),
    ],
)
def test_too_many_channels_or_too_high_sample_rate_is_refused(shape: tuple[int, int], rate: int, sentence: str) -> None:
    assert refusal(wav(np.zeros(shape, np.int16), rate)) == ("too-large", sentence)


def test_eight_channels_at_384_khz_are_decoded() -> None:
    tone = (2**14 * tones(0.25, 384_000, 1000.0)).astype(np.int16)
    samples = read(wav(np.repeat(tone[:, None], 8, axis=1), 384_000), RATE, LIMITS)
    assert len(samples) == RATE // 4 and np.abs(samples[500:-500] - 0.5 * tones(0.25, RATE, 1000.0)[500:-500]).max() < 1e-4


def test_an_endless_stream_ends_at_the_bound() -> None:
    """An Ogg of many streams, one behind the other, and a WAV of 100 samples a second, which would become gigabytes."""
    ogg = write_file(np.stack([tones(1.0, 48_000, 440.0)] * 2), 48_000, "ogg", "libopus")
    sentence = "it is longer than the limit of 120 seconds (OPSIN_MAX_AUDIO_SECONDS)"
    assert refusal(ogg * 130) == ("too-large", sentence)
    assert refusal(wav(np.zeros(10**6, np.int16), 100)) == ("too-large", sentence)
    assert refusal(write_file(np.zeros((1, 8000 * 600), np.int8), 8000, "flac", "flac")) == ("too-large", sentence)


def test_a_sound_of_exactly_the_limit_is_accepted() -> None:
    assert len(read(wav(np.zeros(RATE, np.int16), RATE), RATE, SoundLimits(seconds=1))) == RATE
    assert refusal(wav(np.zeros(RATE + RATE // 5, np.int16), RATE), SoundLimits(seconds=1))[0] == "too-large"


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("matroska", "flac")])
def test_damaged_sounds_are_decoded_or_refused_never_crash(container: str, codec: str, rounds: int) -> None:
    """The result is a sentence or a sound of at most its length."""
    content = write_file(TONE, 44_100, container, codec)
    generator = np.random.default_rng(1)
    for _ in range(rounds):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 40):
            damaged[place] = generator.integers(256)
        for piece in (bytes(damaged), bytes(damaged[: generator.integers(len(content))])):
            try:
                assert len(read(piece, RATE, LIMITS)) <= 2 * RATE
            except RecordingError as error:
                assert len(str(error)) > 10


def test_noise_behind_a_header_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()
    assert refusal(write_file(TONE, 44_100, "flac", "flac")[:200] + noise)[0] == "corrupt-sound"


def test_a_program_that_sends_too_much_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "PROGRAM", "tests.support.child_programs loud")
    assert refusal(wav(np.zeros(8000, np.int16), RATE))[1] == "decoding it failed: it has more samples than the limit"


def test_a_program_that_dies_refuses_its_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "PROGRAM", "tests.support.child_programs exits")
    assert refusal(wav(np.zeros(8000, np.int16), RATE)) == ("corrupt-sound", f"decoding it failed: it ended with {os.EX_SOFTWARE}")


def test_audio_of_unknown_codec_is_not_reported_as_other_part() -> None:
    content = bytearray(wav((32767 * tones(0.5, 16000, 440.0)).astype(np.int16), 16000))
    content[20:22] = b"\xff\xff"  # its format's tag
    assert refusal(bytes(content)) == ("not-a-sound", "its sound is of a codec that is not decoded here")
