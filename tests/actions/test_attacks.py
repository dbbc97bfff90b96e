"""Odd, broken and numerous files: each is answered or refused, and the service goes on."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import psutil
import pytest

from models.media.video import PROGRAM
from server.media import person_tracks
from tests.actions.fake_pose_estimator import long_video, two_people
from tests.actions.test_route import ask, refusal
from tests.actions.test_survival import done, submit
from tests.support.gateway_process import Gateway
from tests.support.job_api import comes_to, result
from tests.support.live_service import Service
from tests.support.processes import copies
from tests.support.videos import clip, every, mix, sound_alone
from tests.support.waiting import START_S, eventually


def without_stamps() -> bytes:
    """Make a stream of MPEG pictures without a container, so that no time stamps say when they are shown."""
    film = clip(every(12, 24.0), container="mpeg2video", codec="mpeg2video")
    assert film.startswith(b"\x00\x00\x01\xb3")
    return film


def damaged_in_the_middle() -> bytes:
    broken = bytearray(two_people(60))
    broken[len(broken) // 2 : len(broken) // 2 + 4000] = bytes(4000)
    return bytes(broken)


@pytest.mark.parametrize(
    ("film", "facts"),
    [
        (without_stamps(), {"width": 64, "height": 48, "frames": 12}),
        (clip([0, 0.05, 0.1, 1.0, 1.02, 2.0], container="matroska"), {"frames": 6, "fps": 2.5, "duration_s": 2.4}),
        (clip(every(5, 10.0), rotation=90), {"width": 48, "height": 64}),
        (clip(every(1, 10.0)), {"frames": 1}),
        (clip([0.0, 30.0, 60.0], container="matroska"), {"frames": 3, "duration_s": 90.0}),
        (mix("matroska", "subtitles", "sound", "video", "other video", "font", "cover"), {"width": 64, "height": 48, "frames": 20}),
    ],
    ids=["without time stamps", "variable rate", "turned", "one frame", "slow", "with other streams"],
)
def test_odd_videos_are_watched_and_drawn_into(gateway: Gateway, film: bytes, facts: dict[str, float]) -> None:
    answer = ask(gateway, video=film).raise_for_status().json()
    assert {name: answer["video"][name] for name in facts} == facts and answer["people"] == []
    drawn = ask(gateway, {"Accept": "video/mp4"}, video=film).raise_for_status()
    with av.open(io.BytesIO(drawn.content)) as played:
        frames = list(played.decode(video=0))
    assert len(frames) == answer["video"]["frames"]
    assert (frames[0].width, frames[0].height) == (answer["video"]["width"], answer["video"]["height"])


def test_broken_video_is_refused_and_next_one_analysed(gateway: Gateway) -> None:
    film = clip(every(20, 20.0))
    headers_alone = film[: film.index(b"mdat")]
    songs = (sound_alone(), mix("mp4", "sound", "cover"), mix("mp3", "sound", "cover"))
    for broken in (film[:-1000], headers_alone, *songs, bytes(5000), b"\x1a\x45\xdf\xa3" + bytes(500)):
        answer = ask(gateway, video=broken)
        assert answer.status_code in (415, 422) and answer.json()["field"] == "video", answer.text
    assert ask(gateway, video=damaged_in_the_middle()).status_code in (200, 422)
    assert ask(gateway, video=film).raise_for_status().json()["video"]["frames"] == 20


def test_duration_counts_even_with_few_frames(gateway: Gateway) -> None:
    field, detail = refusal(gateway, 413, video=clip([0.0, 59.0, 118.0], container="matroska"))
    assert field == "video" and detail.startswith("177 seconds are above the limit of 120")


def test_a_decoder_that_dies_in_mid_clip_costs_its_job_alone(watching: Service) -> None:
    gateway = watching.gateway
    job_id = submit(gateway, {"video": long_video()})
    eventually(lambda: done(gateway, job_id) > 1, "it is being watched", START_S)
    for process in copies(PROGRAM, watching.worker):
        process.kill()
    failed = comes_to(gateway, job_id, "failed")
    assert (failed["error"]["status"], failed["error"]["field"]) == (422, "video"), failed
    assert "signal 9" in failed["error"]["detail"] and result(gateway, job_id).status_code == 422
    assert psutil.pid_exists(watching.worker)
    assert ask(gateway, video=two_people(4)).status_code == 200


@pytest.mark.slow
def test_many_clips_at_once_are_all_answered(gateway: Gateway) -> None:
    films = [clip(every(4 + number, 10.0)) for number in range(12)]
    with ThreadPoolExecutor(len(films)) as pool:
        answers = list(pool.map(lambda film: ask(gateway, video=film), films))
    assert [answer.status_code for answer in answers] == [200] * len(films)
    assert [answer.json()["video"]["frames"] for answer in answers] == [4 + number for number in range(12)]


def test_a_late_part_of_a_video_is_found(gateway: Gateway) -> None:
    answer = ask(gateway, {"Accept": "application/json"}, video=long_video(), start_s=39.0, end_s=39.5).raise_for_status().json()
    assert answer["video"]["duration_s"] == 40.0


@pytest.mark.slow
def test_tracks_at_their_limits_are_answered(gateway: Gateway) -> None:
    """Prove it for 100 people, 50,000 sightings and 120 seconds."""
    people, each = person_tracks.MAX_TRACKED_PEOPLE, person_tracks.MAX_SIGHTINGS // person_tracks.MAX_TRACKED_PEOPLE
    draw = np.random.default_rng(0)
    person = np.repeat(np.arange(people), each)
    time = np.tile(np.linspace(0, 120, each), people)
    box = np.column_stack([draw.uniform(10, 200, (len(person), 2)), draw.uniform(20, 90, (len(person), 2)), np.ones(len(person))])
    file = io.BytesIO()
    np.savez(file, person=person, time=time, box=box, pose=draw.uniform(0, 200, (len(person), 51)).astype(np.float32), size=[320, 240])
    response = gateway.http.post("/v1/actions", files={"tracks": file.getvalue()}, data={"top_k": 1}, timeout=600)
    tracked = response.raise_for_status().json()["people"]
    assert len(tracked) == people and all(len(one["boxes"]) == each and len(one["actions"]) in (120, 121) for one in tracked)
