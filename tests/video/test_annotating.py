"""Answers drawn into clips, by a process of its own."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from server.media import recordings
from server.media.limits import RecordingError
from server.media.recordings import PersonAnnotation, annotate
from tests.support.videos import clip, every, pictures

RED = (230, 25, 75)
"""The colour of person 1."""


def decode(file: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(file)) as played:
        return [frame.to_ndarray(format="rgb24") for frame in played.decode(video=0)]


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Mark the pixels of a colour, but for what the encoder's chroma loses."""
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 70


def test_a_box_is_drawn_where_and_when_a_person_was_seen() -> None:
    frames = [np.full((120, 160, 3), 120, np.uint8)] * 20
    film = clip(every(20, 10.0), frames=frames, size=(120, 160))
    boxes = [[number / 10, 20.0 + 4 * number, 30.0, 40.0, 60.0] for number in range(10)]
    annotated = decode(annotate(film, [PersonAnnotation(1, boxes, [], [(0.0, 1.0, ["walk 0.90"])])]))
    assert len(annotated) == 20
    for number in (0, 5, 9):
        columns = np.flatnonzero(near(annotated[number][76:88], RED).any(axis=0))
        assert abs(columns.min() - (20 + 4 * number)) <= 2 and abs(columns.max() - (60 + 4 * number)) <= 2
    assert not any(near(frame, RED).any() for frame in annotated[11:])


def test_person_hidden_for_half_a_second_is_drawn_dashed() -> None:
    film = clip(every(20, 10.0), frames=[np.full((120, 160, 3), 120, np.uint8)] * 20, size=(120, 160))
    boxes = [[0.0, 20.0, 30.0, 40.0, 60.0], [0.4, 60.0, 30.0, 40.0, 60.0], [1.2, 60.0, 30.0, 40.0, 60.0]]
    annotated = decode(annotate(film, [PersonAnnotation(1, boxes, [], [])]))

    def left_edge(number: int, x: int) -> float:
        """Share of the left side of a box that is drawn, below what is written on it."""
        return float(near(annotated[number][50:88, x - 1 : x + 3], RED).any(axis=1).mean())

    assert left_edge(0, 20) > 0.9 and left_edge(4, 60) > 0.9
    assert 0.3 < left_edge(2, 40) < 0.8  # halfway, with gaps
    assert not near(annotated[8], RED).any()  # 0.8 s are too long


def test_frames_keep_their_times_and_odd_sizes_grow_by_a_pixel() -> None:
    times = [0.0, 0.1, 0.5, 0.6]
    film = clip(times, container="matroska", codec="ffv1", pixels="bgr0", size=(35, 33))
    with av.open(io.BytesIO(annotate(film, []))) as played:
        frames = list(played.decode(video=0))
    assert [round(float(frame.pts * Fraction(frame.time_base)), 3) for frame in frames] == pytest.approx(times, abs=2e-3)
    assert (frames[0].height, frames[0].width) == (36, 34)


@pytest.mark.parametrize(("container", "codec", "sound"), [("mp4", "libx264", "aac"), ("webm", "libvpx-vp9", "opus")])
def test_the_sound_is_kept(container: str, codec: str, sound: str) -> None:
    made = annotate(clip(every(20, 10.0), container=container, codec=codec, sound=True), [])
    with av.open(io.BytesIO(made)) as played:
        assert played.streams.audio[0].codec_context.name == sound
        assert sum(frame.samples for frame in played.decode(audio=0)) == pytest.approx(2 * 48_000, rel=0.1)


@pytest.mark.parametrize("rate", [6_000, 22_254, 192_000])
def test_sound_of_a_rate_that_aac_does_not_know_is_kept(rate: int) -> None:
    made = annotate(clip(every(20, 10.0), container="matroska", sound=("pcm_s16le", rate)), [])
    with av.open(io.BytesIO(made)) as played:
        assert sum(frame.samples / frame.sample_rate for frame in played.decode(audio=0)) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("codec", "other_rate"), [("aac", 48_000), ("mp2", 48_000), ("mp2", 44_100)])
def test_joined_recordings_are_annotated_despite_restarted_audio(codec: str, other_rate: int) -> None:
    """Times begin again where the second one does, and its sound may be of another rate."""
    first, second = (clip(every(10, 10.0), container="mpegts", sound=(codec, rate)) for rate in (48_000, other_rate))
    made = annotate(first + second, [])
    assert len(decode(made)) == 20
    with av.open(io.BytesIO(made)) as played:
        assert sum(frame.samples / frame.sample_rate for frame in played.decode(audio=0)) > 0.8


def test_frames_too_wide_for_one_encoder_are_encoded_by_another() -> None:
    film = clip(every(2, 10.0), container="matroska", codec="ffv1", pixels="bgr0", size=(16, 16_400))
    assert decode(annotate(film, []))[0].shape == (16, 16_400, 3)


def test_frames_that_grow_beyond_the_limit_are_left_out() -> None:
    film = pictures([(48, 64), (480, 640), (2400, 4096), (48, 64)])
    assert len(decode(annotate(film, []))) == 3
    assert len(decode(annotate(film, [], most_pixels=2400 * 4096))) == 4


def test_a_turned_video_is_drawn_upright() -> None:
    assert decode(annotate(clip(every(3, 10.0), rotation=90), []))[0].shape == (64, 48, 3)


def test_a_clip_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordingError, match="the annotated clip cannot be made"):
        annotate(clip(every(10, 10.0))[:600], [])
    monkeypatch.setattr(recordings, "MAX_ANNOTATED_BYTES", 10)
    with pytest.raises(RecordingError, match="bytes"):
        annotate(clip(every(3, 10.0)), [])
