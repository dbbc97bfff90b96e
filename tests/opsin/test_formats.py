"""Formats by the bytes of a file: every kind that the service reads, as its own libraries write it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from opsin.cli.shared.media_kinds import detect_kind
from tests.support.audio import tag, tones, wav, write_file
from tests.support.videos import clip, every, sound_alone

TIMES = every(4, 10.0)
TONES = np.stack([tones(0.2, 48_000, 440.0)] * 2)


def image(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images(name: str) -> None:
    assert detect_kind(image(name)) == "image"


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mov", "libx264", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("matroska", "ffv1", "bgr0"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpeg", "mpeg2video", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
        ("asf", "mpeg4", "yuv420p"),
        ("flv", "libx264", "yuv420p"),
    ],
)
def test_videos(container: str, codec: str, pixels: str) -> None:
    times = every(10, 25.0)
    assert detect_kind(clip(times, container=container, codec=codec, pixels=pixels)) == "video"


@pytest.mark.parametrize("codec", [b"\x80theora", b"OVP80"])
def test_an_ogg_whose_first_pages_name_a_video_codec_is_a_video(codec: bytes) -> None:
    assert detect_kind(b"OggS" + bytes(24) + codec + bytes(400)) == "video"


def test_a_video_with_sound_is_a_video() -> None:
    assert [detect_kind(clip(TIMES, sound=True)), detect_kind(clip(TIMES, container="matroska", sound=True))] == ["video", "video"]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("ogg", "libopus"),
        ("ogg", "vorbis"),
        ("adts", "aac"),
        ("aiff", "pcm_s16be"),
        ("caf", "pcm_s16be"),
        ("matroska", "libopus"),
        ("webm", "libopus"),
        ("asf", "libmp3lame"),
    ],
)
def test_sounds(container: str, codec: str) -> None:
    assert detect_kind(write_file(TONES, 48_000, container, codec)) == "audio"


def test_sounds_in_containers_of_videos_and_behind_covers() -> None:
    assert detect_kind(sound_alone()) == "audio"
    assert detect_kind(tag(write_file(TONES, 48_000, "mp3", "libmp3lame"), image("PNG"))) == "audio"
    assert detect_kind(wav(np.zeros(400, np.float32), 16_000)) == "audio"


def test_truncated_mp4_is_video_unless_its_brand_differs() -> None:
    full = clip(TIMES, sound=True)
    assert [detect_kind(full[: len(full) // 2]), detect_kind(b"\0\0\0\x1cftypM4A " + bytes(400))] == ["video", "audio"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"cats", bytes(600), b"RIFF\0\0\0\0cats"])
def test_an_unknown_format_is_an_error(content: bytes) -> None:
    assert detect_kind(content) is None


def test_images_the_service_cannot_decode_are_sent_as_images() -> None:
    assert detect_kind(b"\0\0\0\x1cftypavif" + bytes(400)) == "image"
