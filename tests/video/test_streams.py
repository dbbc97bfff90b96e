"""Videos are seldom alone in their files: which stream is watched and drawn into, and what is none."""

from __future__ import annotations

import io

import av
import pytest

from models.media.video import ClipLimits, Frames, VideoError, probe
from server.media.recordings import annotate
from tests.support.videos import FRAMES, OTHER_FRAMES, OTHER_SIZE, RATE, SIZE, clip, every, mix, number_of

LIMITS = ClipLimits()
PACKET_BYTES = 188
"""Size of a packet of MPEG-TS."""


def refusal(film: bytes) -> tuple[str, str]:
    with pytest.raises(VideoError) as error:
        probe(film, LIMITS)
    return error.value.kind, str(error.value)


@pytest.mark.parametrize(
    ("container", "kinds"),
    [
        ("matroska", ("video", "other video")),
        ("mp4", ("video", "other video")),
        ("mpegts", ("video", "other video")),
        ("matroska", ("subtitles", "video")),
        ("mp4", ("video", "subtitles")),
        ("mpegts", ("data", "video")),
        ("matroska", ("video", "font", "cover")),
        ("mp4", ("cover", "video", "sound")),
        ("matroska", ("subtitles", "sound", "video", "other video", "font", "cover")),
    ],
    ids=lambda value: value if isinstance(value, str) else " + ".join(value),
)
def test_first_video_is_analysed_and_annotated_among_streams(container: str, kinds: tuple[str, ...]) -> None:
    film = mix(container, *kinds)
    facts = probe(film, LIMITS)
    assert ((facts.height, facts.width), facts.frames, facts.duration_s) == (SIZE, FRAMES, FRAMES / RATE)
    seen = list(Frames(film, RATE, LIMITS).take(10**9))
    assert [number_of(frame.pixels) for frame in seen] == list(range(FRAMES))
    with av.open(io.BytesIO(annotate(film, []))) as drawn:
        assert sorted(stream.type for stream in drawn.streams) == (["audio", "video"] if "sound" in kinds else ["video"])
        frames = list(drawn.decode(video=0))
    assert (len(frames), (frames[0].height, frames[0].width)) == (FRAMES, SIZE)


def test_of_two_videos_the_first_one_counts() -> None:
    facts = probe(mix("matroska", "other video", "video"), LIMITS)
    assert ((facts.height, facts.width), facts.frames) == (OTHER_SIZE, OTHER_FRAMES)


@pytest.mark.parametrize(
    ("container", "kinds"),
    [("mp4", ("sound",)), ("mp4", ("sound", "cover")), ("matroska", ("sound", "cover")), ("matroska", ("sound", "subtitles"))],
    ids=lambda value: value if isinstance(value, str) else " + ".join(value),
)
def test_sound_is_no_video_even_with_a_cover(container: str, kinds: tuple[str, ...]) -> None:
    assert refusal(mix(container, *kinds)) == ("no-video", "no video in it: sound alone")


def test_a_song_with_a_cover_is_no_container_of_videos() -> None:
    kind, detail = refusal(mix("mp3", "sound", "cover"))
    assert kind == "not-a-video" and detail.startswith("not a video in a container that is opened here")


def test_a_damaged_packet_of_a_broadcast_costs_its_frame_alone() -> None:
    film = bytearray(clip(every(20, 10.0), container="mpegts", codec="mpeg4"))
    begins = [at for at in range(0, len(film), PACKET_BYTES) if film[at + 1] & 0x5F == 0x41 and film[at + 2] == 0]  # a frame's, of PID 256
    film[begins[7] + 1] ^= 0x02  # now of a stream that no table lists
    facts = probe(film, LIMITS)
    assert facts.frames == 19
    assert len(list(Frames(bytes(film), RATE, LIMITS).take(10**9))) > 15
    with av.open(io.BytesIO(annotate(bytes(film), []))) as drawn:
        assert len(list(drawn.decode(video=0))) > 15
