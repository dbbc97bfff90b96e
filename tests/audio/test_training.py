"""Training reads sound as the service hears it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.media.audio import SoundLimits
from server.media.recordings import read_sound as read
from tests.support.audio import tones, wav, write_file
from tests.support.videos import clip, every
from training.data.decode import read_sound
from training.data.source import UnreadableSample

STEREO = np.stack([tones(3.0, 44_100, 440.0), tones(3.0, 44_100, 1000.0)])


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("ogg", "vorbis"), ("mp4", "aac")])
def test_training_and_service_decode_the_same_samples(tmp_path: Path, container: str, codec: str) -> None:
    content = write_file(STEREO, 44_100, container, codec)
    file = tmp_path / "sound"
    file.write_bytes(content)
    samples = read(content, 16_000, SoundLimits())
    assert np.array_equal(read_sound(file, 16_000, 60.0).numpy(), samples)
    assert np.array_equal(read_sound(file, 16_000, 1.0, start=0.5).numpy(), samples[8000:24_000])


def test_equal_channels_are_as_loud_as_one(tmp_path: Path) -> None:
    """FFmpeg's mono of them would be √2 louder."""
    tone = tones(1.0, 16_000, 440.0).astype(np.float32)
    file = tmp_path / "two.wav"
    file.write_bytes(wav(np.stack([tone, tone], axis=1), 16_000))
    assert np.array_equal(read_sound(file, 16_000, 1.0).numpy(), tone)


def test_what_the_service_hears_can_be_learnt_from(tmp_path: Path) -> None:
    file = tmp_path / "click.wav"
    file.write_bytes(wav(np.ones(400, np.int16), 16_000))
    assert len(read_sound(file, 16_000, 1.0)) == 400


def test_files_without_sound_are_unreadable(tmp_path: Path) -> None:
    for name, content in (("silent.mp4", clip(every(5, 10.0))), ("short.wav", wav(np.zeros(399, np.int16), 16_000)), ("no.wav", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableSample, match=name):
            read_sound(tmp_path / name, 16_000, 1.0)
