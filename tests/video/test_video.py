"""Videos by their bytes: what they are, their frames by time, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from models.media import video
from models.media.video import MAX_FRAMES_AHEAD, PROGRAM, ClipLimits, FrameNotReady, Frames, SampledFrame, VideoError, probe
from models.processes.confined_process import MAX_SILENCE_S
from models.systems.clips.frame_reader import ViewFrameReader
from tests.support.processes import children, copies
from tests.support.videos import clip, every, number_of, sound_alone, with_hours
from tests.support.waiting import eventually

LIMITS = ClipLimits()
FILM = clip(every(20, 20.0))

WRITTEN = [
    ("mp4", "libx264"),
    ("mp4", "mpeg4"),
    ("mov", "libx264"),
    ("3gp", "libx264"),
    ("matroska", "libx264"),
    ("matroska", "ffv1"),
    ("webm", "libvpx-vp9"),
    ("avi", "mpeg4"),
    ("mpegts", "libx264"),
    ("mpeg", "mpeg2video"),
    ("flv", "libx264"),
]


def read(data: bytes, rate: float, **span: float) -> list[SampledFrame]:
    frames = Frames(data, rate, LIMITS, **span)
    return list(frames.take(10**9))


def refusal(data: bytes, limits: ClipLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(VideoError) as error:
        probe(data, limits)
    return error.value.kind, str(error.value)


@pytest.mark.parametrize(("container", "codec"), WRITTEN)
def test_every_container_gives_its_frames_in_order(container: str, codec: str) -> None:
    rate = 25.0
    film = clip(every(20, rate), container=container, codec=codec)
    facts = probe(film, LIMITS)
    assert (facts.width, facts.height, facts.frames) == (64, 48, 20)
    assert facts.fps == pytest.approx(rate, rel=0.03) and facts.duration_s == pytest.approx(20 / rate, abs=0.05)
    seen = read(film, rate)
    assert [number_of(frame.pixels) for frame in seen] == list(range(20))
    assert [frame.row for frame in seen] == list(range(20)) and all(frame.rows == 1 for frame in seen)


@pytest.mark.parametrize("container", ["matroska", "webm", "mp4", "mpegts"])
def test_duration_does_not_depend_on_the_first_timestamp(container: str) -> None:
    codec = "libvpx" if container == "webm" else "mpeg4"
    film = clip([90_000 + time for time in every(20, 10.0)], container=container, codec=codec)
    facts = probe(film, LIMITS)
    assert (facts.frames, facts.duration_s) == (20, pytest.approx(2.0, abs=0.11))
    assert number_of(read(film, 10.0)[0].pixels) == 0


def test_a_turned_video_comes_upright() -> None:
    image = np.full((48, 64, 3), 40, np.uint8)
    image[:24, :32] = 220  # bright at the top left, as stored
    film = clip(every(3, 10.0), rotation=-90, frames=[image] * 3)  # the player turns it by a quarter, clockwise
    facts = probe(film, LIMITS)
    assert (facts.width, facts.height) == (48, 64)
    pixels = read(film, 10.0)[0].pixels
    assert pixels.shape == (64, 48, 3)
    assert pixels[:28, 28:].mean() > 200 and pixels[36:].mean() < 60  # at the top right


def test_rows_show_the_nearest_frame_of_a_variable_rate() -> None:
    times = [0.0, 0.03, 0.06, 0.4, 0.5, 1.0]
    seen = read(clip(times, container="matroska"), 10.0)
    numbers = {row: number_of(frame.pixels) for frame in seen for row in range(frame.row, frame.end)}
    assert numbers == {row: min(range(6), key=lambda i: abs(times[i] - row / 10)) for row in range(12)}
    assert [round(frame.time, 3) for frame in seen] == [0.0, 0.06, 0.4, 0.5, 1.0]  # no row asks for the second one


def test_frames_that_are_not_sampled_are_not_sent() -> None:
    seen = read(clip(every(60, 60.0)), 15.0)
    assert [number_of(frame.pixels) % 28 for frame in seen] == [number % 28 for number in range(0, 60, 4)]


def test_a_slow_video_repeats_frames_by_rows() -> None:
    seen = read(clip(every(5, 5.0)), 15.0)
    assert [frame.rows for frame in seen] == [2, 3, 3, 3, 4]
    assert all(before.end == after.row for before, after in pairwise(seen))


def test_a_part_of_a_video_is_what_lies_between_its_seconds() -> None:
    seen = read(FILM, 20.0, start=0.25, end=0.5)
    assert [frame.row for frame in seen] == [5, 6, 7, 8, 9]


def test_decoding_a_long_part_to_skip_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is decoded the program says that it goes on, or it would count as stuck; who waits for frames may come back later."""
    monkeypatch.setattr(video, "PROGRAM", "tests.support.child_programs talkative")
    frames = Frames(FILM, 20.0, LIMITS, start=0.8)
    with pytest.raises(FrameNotReady):
        next(frames.take(10**9, until=time.monotonic()))
    assert [frame.row for frame in frames.take(10**9)] == [16, 17, 18, 19]
    assert frames.decoded == 20


@pytest.mark.parametrize("degrees", [45, 80, -100])
def test_odd_angles_count_as_the_nearest_quarter(degrees: int) -> None:
    film = clip(every(3, 10.0), rotation=degrees)
    facts = probe(film, LIMITS)
    shapes = {frame.pixels.shape for frame in read(film, 10.0)}
    assert shapes == {(facts.height, facts.width, 3)}
    assert (facts.height, facts.width) == ((48, 64) if degrees == 45 else (64, 48))


def test_windows_of_any_length_give_the_same_frames() -> None:
    expected = [number_of(frame.pixels) for frame in read(FILM, 20.0)]
    frames = Frames(FILM, 20.0, LIMITS)
    assert [number_of(frame.pixels) for end in (3, 4, 11, 99) for frame in frames.take(end)] == expected
    assert frames.ended


@pytest.mark.parametrize("size", [(35, 33), (1, 2), (17, 640)])
def test_odd_sizes_are_kept(size: tuple[int, int]) -> None:
    film = clip(every(3, 10.0), container="matroska", codec="ffv1", pixels="bgr0", size=size)
    facts = probe(film, LIMITS)
    assert (facts.height, facts.width) == size
    assert [frame.pixels.shape for frame in read(film, 10.0)] == [(*size, 3)] * 3


def test_sound_next_to_the_video_does_not_matter() -> None:
    facts = probe(clip(every(10, 10.0), sound=True), LIMITS)
    assert facts.frames == 10


def test_files_that_are_not_videos_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    assert refusal(noise)[0] == "not-a-video"
    assert refusal(b"\x89PNG\r\n\x1a\n" + noise)[0] == "not-a-video"
    assert refusal(b"")[0] == "not-a-video"


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"file '/etc/passwd'\n",
        b"\n<?xml version='1.0'?><MPD><BaseURL>http://10.0.0.1/</BaseURL></MPD>",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 10.0.0.1\r\n",
    ],
)
def test_lists_that_name_other_files_are_refused(content: bytes) -> None:
    assert refusal(content) == ("not-a-video", "a list that names other files: send the video itself")


def test_a_video_without_frames_is_refused() -> None:
    assert refusal(sound_alone()) == ("no-video", "no video in it: sound alone")
    matroska = clip(every(3, 10.0), container="matroska")
    assert refusal(matroska[: matroska.index(b"\x1f\x43\xb6\x75")])[0] == "broken"  # up to the first cluster


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_file_is_refused_or_gives_what_is_left(share: float) -> None:
    """An MP4 has its index at the end; a transport stream is read up to its end."""
    assert refusal(FILM[: int(len(FILM) * share)])[0] == "broken"
    images = [np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8) for number in range(20)]
    stream = clip(every(20, 20.0), container="mpegts", frames=images)
    left = stream[: int(len(stream) * (0.3 + share / 2))]
    assert 0 < probe(left, LIMITS).frames < 20
    assert 0 < len(read(left, 20.0)) < 20


def test_damaged_bytes_are_refused_or_decoded_never_a_traceback() -> None:
    draw = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(FILM)
        for at in draw.integers(40, len(FILM), 60):
            damaged[at] = draw.integers(256)
        try:
            probe(bytes(damaged), LIMITS)
            read(bytes(damaged), 20.0)
        except VideoError as error:
            assert "Traceback" not in str(error) and "ended with" not in str(error)


def test_a_too_large_video_is_refused_by_its_headers() -> None:
    kind, detail = refusal(with_hours(FILM, 10))
    assert kind == "too-much" and detail.endswith("seconds are above the limit of 120 (OPSIN_MAX_VIDEO_SECONDS)")
    assert refusal(FILM, ClipLimits(frames=19)) == ("too-much", "more than 19 frames (OPSIN_MAX_VIDEO_FRAMES)")
    message = "frames of 64 × 48 pixels are above the limit of 3000 (OPSIN_MAX_VIDEO_PIXELS)"
    assert refusal(FILM, ClipLimits(pixels=3000)) == ("too-much", message)
    assert refusal(clip(every(20, 20.0), container="matroska"), ClipLimits(seconds=0.5))[0] == "too-much"


def test_few_frames_last_as_long_as_their_times_say() -> None:
    """The last one is shown for a while, too."""
    few = clip([0.0, 50.0, 100.0], container="matroska")
    assert probe(few, ClipLimits(seconds=150)).duration_s == 150
    assert refusal(few, ClipLimits(seconds=149)) == ("too-much", "150 seconds are above the limit of 149 (OPSIN_MAX_VIDEO_SECONDS)")


def test_a_header_that_says_too_little_does_not_open_the_gate() -> None:
    short = bytearray(clip(every(40, 20.0)))
    short[short.index(b"mvhd") + 4 + 16 : short.index(b"mvhd") + 4 + 20] = b"\0\0\0\1"
    short[short.index(b"mdhd") + 4 + 16 : short.index(b"mdhd") + 4 + 20] = b"\0\0\0\1"
    assert refusal(bytes(short), ClipLimits(seconds=1.0))[0] == "too-much"


def test_a_decoder_that_dies_costs_the_video_only() -> None:
    frames = Frames(clip(every(40, 20.0), size=(480, 640)), 20.0, LIMITS)
    taken = frames.take(10**9)
    next(taken)
    for program in copies(PROGRAM):
        program.send_signal(signal.SIGSEGV)
    with pytest.raises(VideoError, match="it was ended by signal 11"):
        list(taken)
    assert len(read(FILM, 20.0)) == 20


def test_who_read_a_video_is_gone_when_it_is_closed_or_forgotten() -> None:
    frames = Frames(FILM, 20.0, LIMITS)
    next(frames.take(5))
    [reading] = copies(PROGRAM)
    frames.close()
    assert not reading.is_running()
    frames = Frames(FILM, 20.0, LIMITS)
    next(frames.take(5))
    [reading] = copies(PROGRAM)
    del frames
    assert not reading.is_running()


def test_videos_are_read_by_copies_even_if_template_died() -> None:
    probe(FILM, LIMITS)
    [template] = children(PROGRAM)
    both = [Frames(FILM, 20.0, LIMITS) for _ in range(2)]
    for frames in both:
        next(frames.take(5))
    assert children(PROGRAM) == [template] and len(copies(PROGRAM)) == 2
    for frames in both:
        frames.close()
    template.kill()
    psutil.wait_procs([template], timeout=30)
    assert probe(FILM, LIMITS).frames == 20


def test_copy_has_only_its_files_and_template_one_thread() -> None:
    """A codec that a stranger took over cannot open another request's file. Nothing is copied amid another thread's work."""
    probe(FILM, LIMITS)
    both = [Frames(clip(every(400, 20.0), size=(96, 128)), 20.0, LIMITS) for _ in range(2)]
    for frames in both:
        next(frames.take(5))
    assert [template.num_threads() for template in children(PROGRAM)] == [1]
    for reading in copies(PROGRAM):
        opened = {int(entry.name): str(entry.readlink()) for entry in Path(f"/proc/{reading.pid}/fd").iterdir()}
        assert sorted(opened) == [0, 1, 2, 3] and opened[0].startswith("/memfd:") and opened[1] == opened[2] == os.devnull, opened
        assert opened[3].startswith("pipe:"), opened
    for frames in both:
        frames.close()


def test_after_a_crash_memory_lies_elsewhere() -> None:
    """Else a file could guess again and again where things lie in a decoder that it has taken over."""
    probe(FILM, LIMITS)
    before = children(PROGRAM)
    frames = Frames(clip(every(40, 20.0), size=(480, 640)), 20.0, LIMITS)
    taken = frames.take(10**9)
    next(taken)
    [reading] = copies(PROGRAM)
    reading.send_signal(signal.SIGILL)
    with pytest.raises(VideoError, match="it was ended by signal 4"):
        list(taken)
    probe(FILM, LIMITS)
    assert not set(before) & set(children(PROGRAM))


def test_a_video_whose_decoder_others_ended_is_read_again_once() -> None:
    film = np.frombuffer(clip(every(40, 20.0), size=(480, 640)), np.uint8)
    frames = ViewFrameReader(film, [[0, 5], [10, 39]], 20.0, LIMITS, lambda pixels: torch.tensor(pixels.shape), 24)
    [reading] = copies(PROGRAM)
    reading.kill()
    with suppress(FrameNotReady):
        assert len(frames.take(0, time.monotonic() + 60)) == 2
    assert [len(frames.take(view, time.monotonic() + 60)) for view in (0, 1)] == [2, 2]
    frames.close()


def test_read_ahead_gives_way_and_next_video_does_not() -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)

    def read() -> tuple[psutil.Process, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual + 5)  # as threads have it that take steps
        frames = Frames(FILM, 20.0, LIMITS)
        next(frames.take(5))
        [reading] = copies(PROGRAM)
        found = reading.parent(), os.sched_getscheduler(reading.pid)
        frames.close()
        return found

    with ThreadPoolExecutor(1) as thread:
        template, decoding = thread.submit(read).result()
    assert decoding == os.SCHED_IDLE
    probe(FILM, LIMITS)
    assert sorted(other.nice() for other in children(PROGRAM)) == [usual, usual + 5] and template.nice() == usual + 5
    template.kill()
    psutil.wait_procs([template], timeout=30)


def test_a_frozen_program_costs_the_next_video_nothing() -> None:
    probe(FILM, LIMITS)
    frozen = idle()
    frozen.suspend()
    started = time.monotonic()
    assert probe(FILM, LIMITS).frames == 20
    assert time.monotonic() - started < MAX_SILENCE_S / 2
    assert not frozen.is_running()


def idle() -> psutil.Process:
    """Return the template process once a copy has answered, so it has imported all."""
    [template] = children(PROGRAM)
    return template


def test_a_template_and_its_copies_end_with_their_owner() -> None:
    code = """if True:
        import signal, sys
        from models.media.video import *
        frames = Frames(sys.stdin.buffer.read(), 20.0, ClipLimits())
        next(frames.take(5))
        print(".", flush=True)
        signal.pause()
    """
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin and owner.stdout
    owner.stdin.write(clip(every(400, 20.0), size=(96, 128)))
    owner.stdin.close()
    owner.stdout.readline()
    left = [*children(PROGRAM, owner.pid), *copies(PROGRAM, owner.pid)]
    owner.kill()
    owner.wait()
    assert len(left) == 2 and psutil.wait_procs(left, timeout=60)[1] == []


def test_frames_are_read_ahead_but_only_a_few() -> None:
    film = clip(every(60, 20.0), container="matroska", codec="ffv1", pixels="bgr0")
    frames = Frames(film, 20.0, LIMITS)
    eventually(lambda: frames.decoded >= MAX_FRAMES_AHEAD, "frames are read ahead")
    assert [number_of(frame.pixels) % 28 for frame in frames.take(99)] == [number % 28 for number in range(60)]


def test_large_frames_are_shrunk_on_request() -> None:
    images = [np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8) for number in range(3)]
    film = clip(every(3, 10.0), container="matroska", codec="ffv1", pixels="bgr0", frames=images)
    small = list(Frames(film, 10.0, LIMITS, long_side=32).take(99))
    assert [(frame.pixels.shape, frame.size) for frame in small] == [((24, 32, 3), (48, 64))] * 3
    means = images[0].reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(small[0].pixels.ravel(), means.ravel())[0, 1] > 0.8
    assert [frame.pixels.shape for frame in Frames(film, 10.0, LIMITS, long_side=64).take(99)] == [(48, 64, 3)] * 3
