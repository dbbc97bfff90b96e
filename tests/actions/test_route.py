"""`POST /v1/actions` of a running service. Its clips are empty, since the repository has no image of a person; people come as tracks."""

from __future__ import annotations

import io
import json
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from opsin import Client
from tests.support.bundles.actions import LABELS
from tests.support.gateway_process import Gateway
from tests.support.gateway_process import refusal as problem_of
from tests.support.job_api import accepted_id, comes_to, parse, result
from tests.support.live_service import Service
from tests.support.videos import clip, every, with_hours
from tests.support.waiting import eventually

FILM = clip(every(6, 10.0), sound=True)
SECONDS = 3


def people() -> list[dict[str, Any]]:
    """Return two people who walk through frames of 320 x 240 pixels, in the format of an answer."""
    draw = np.random.default_rng(0)
    tracked = []
    for number in (1, 2):
        boxes, poses = [], []
        for row in range(15 * SECONDS):
            time, left = round(row / 15, 3), 20.0 * number + row
            boxes.append([time, left, 40.0, 50.0, 150.0, 0.9])
            points = np.column_stack([draw.uniform(left, left + 50, 17), draw.uniform(40, 190, 17), draw.uniform(0.5, 1, 17)])
            poses.append([time, points.round(2).tolist()])
        tracked.append({"person": number, "first_s": 0.0, "last_s": SECONDS, "boxes": boxes, "poses": poses, "actions": []})
    return tracked


ANSWER = {"id": "x", "video": {"width": 320, "height": 240, "fps": 15.0, "frames": 45, "duration_s": 3.0}, "people": people()}


def ask(
    gateway: Gateway, headers: dict[str, str] | None = None, video: bytes | None = None, tracks: Any = None, **options: Any
) -> httpx2.Response:
    files = {} if video is None else {"video": ("clip", video)}
    if tracks is not None:
        files["tracks"] = ("tracks", tracks if isinstance(tracks, bytes) else json.dumps(tracks).encode())
    return gateway.http.post("/v1/actions", files=files, data=options, headers=headers, timeout=120)


def refusal(gateway: Gateway, status: int, **options: Any) -> tuple[str | None, str]:
    """Return the field and detail of a refusal."""
    return problem_of(ask(gateway, **options), status)


def test_the_answer_describes_the_video(gateway: Gateway) -> None:
    answer = ask(gateway, video=FILM).raise_for_status().json()
    assert answer["video"] == {"width": 64, "height": 48, "fps": 10.0, "frames": 6, "duration_s": 0.6}
    assert answer["people"] == [] and answer["model"] == "watcher"
    raw = gateway.http.post("/v1/actions", content=FILM, timeout=120).raise_for_status().json()
    assert raw["video"] == answer["video"]


def test_tracks_are_labelled_second_by_second(gateway: Gateway) -> None:
    answer = ask(gateway, tracks=ANSWER, top_k=2).raise_for_status().json()
    assert answer["video"] is None
    first, second = answer["people"]
    assert [one["person"] for one in (first, second)] == [1, 2]
    assert (first["boxes"], first["poses"]) == (ANSWER["people"][0]["boxes"], ANSWER["people"][0]["poses"])
    assert [(one["start_s"], one["end_s"]) for one in first["actions"]] == [(0, 1), (1, 2), (2, 3)]
    for one in first["actions"]:
        scores = [label["score"] for label in one["labels"]]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
        assert all(label["label"] == LABELS[label["index"]] for label in one["labels"])


def test_an_answer_s_people_are_accepted_unchanged_and_as_npz(gateway: Gateway) -> None:
    answer = ask(gateway, tracks=ANSWER).raise_for_status().json()
    again = ask(gateway, tracks=answer).raise_for_status().json()  # an answer without a video: its frame is as large as the boxes reach
    assert [person["boxes"] for person in again["people"]] == [person["boxes"] for person in answer["people"]]
    boxes = np.array([[person["person"], *box] for person in ANSWER["people"] for box in person["boxes"]])
    poses = np.array([np.ravel(points) for person in ANSWER["people"] for _, points in person["poses"]])
    file = io.BytesIO()
    np.savez(file, person=boxes[:, 0].astype(int), time=boxes[:, 1], box=boxes[:, 2:], pose=poses, size=[320, 240])
    packed = ask(gateway, tracks=file.getvalue()).raise_for_status().json()
    assert packed["people"] == answer["people"]


def test_empty_tracks_are_answered_without_people(gateway: Gateway) -> None:
    assert ask(gateway, tracks=[]).raise_for_status().json()["people"] == []


def test_labels_below_the_threshold_are_left_out(gateway: Gateway) -> None:
    complete = ask(gateway, tracks=ANSWER).raise_for_status().json()["people"]
    scores = sorted(label["score"] for person in complete for second in person["actions"] for label in second["labels"])
    middle = scores[len(scores) // 2]
    some = ask(gateway, tracks=ANSWER, threshold=middle).raise_for_status().json()["people"]
    left = [label["score"] for person in some for second in person["actions"] for label in second["labels"]]
    assert sorted(left) == [score for score in scores if score >= middle]


def test_the_annotated_clip_plays_and_keeps_its_sound(gateway: Gateway) -> None:
    answer = ask(gateway, {"Accept": "video/mp4"}, video=FILM)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["x-people"]) == (200, "video/mp4", "0")
    with av.open(io.BytesIO(answer.content)) as played:
        assert played.streams.audio[0].codec_context.name == "aac"
        assert len(list(played.decode(video=0))) == 6


def test_events_report_windows(gateway: Gateway) -> None:
    with gateway.http.stream(
        "POST", "/v1/actions", files={"tracks": json.dumps(ANSWER).encode()}, headers={"Accept": "text/event-stream"}, timeout=120
    ) as response:
        events = list(parse(response.iter_lines()))
    progress = [event.data for event in events if event.name == "progress"]
    assert progress[-1] == {"done": 7, "total": 7, "unit": "windows"}  # 45 rows by 8, and one for the answer
    assert events[-1].name == "done" and len(events[-1].data["people"]) == 2


COUNTED = ("people", "tracks", "windows", "frames", "decoded_frames", "seconds")


def test_the_worker_counts_what_it_watched(watching: Service) -> None:
    def counts() -> list[float]:
        return [watching.sum_metric(f"opsin_video_{name}_total", model="watcher", version="1") for name in COUNTED]

    # first the warm-up and the requests of other tests are counted
    eventually(
        lambda: watching.sum_metric("opsin_step_joins_total") == watching.sum_metric("opsin_step_leaves_total"), "nothing is under way"
    )
    before = counts()
    ask(watching.gateway, video=FILM).raise_for_status()
    ask(watching.gateway, tracks=ANSWER).raise_for_status()
    windows = 2 * 3  # of two people, 45 rows by 16
    expected = [2, 2, windows, 6, 6, pytest.approx(0.6)]
    eventually(lambda: [after - b for after, b in zip(counts(), before, strict=True)] == expected, "all of it is counted")
    for stage in ("decode", "pose", "track", "actions"):
        assert watching.sum_metric("opsin_video_stage_seconds_total", stage=stage) > 0


def test_result_of_a_job_has_both_forms(gateway: Gateway) -> None:
    job = accepted_id(ask(gateway, {"Prefer": "respond-async"}, video=FILM))
    assert comes_to(gateway, job, "done")["task"] == "actions"
    assert result(gateway, job).json()["video"]["frames"] == 6
    assert result(gateway, job, Accept="video/mp4").headers["content-type"] == "video/mp4"


def test_the_client_returns_the_same_answer(gateway: Gateway) -> None:
    with Client(gateway.url, timeout=120) as client:
        answer = client.actions(tracks=ANSWER["people"], top_k=1)
        assert [person.boxes.shape for person in answer.people] == [(45, 6), (45, 6)] and answer.people[0].poses is not None
        assert answer.people[0].actions[0].labels[0].label in LABELS
        job = client.actions(FILM, wait=False)
        assert job.result().video == {"width": 64, "height": 48, "fps": 10.0, "frames": 6, "duration_s": 0.6}
        assert job.file("video/mp4")[4:8] == b"ftyp"


def test_the_list_of_models_names_the_pipeline_and_its_limits(gateway: Gateway) -> None:
    [model] = gateway.http.get("/v1/models").json()["models"]
    assert (model["name"], model["state"], model["labels"]) == ("watcher", "ready", len(LABELS))
    video, tracks = model["inputs"]
    assert (video["name"], video["kind"], video["max_seconds"], video["max_frames"]) == ("video", "video", 120, 7200)
    assert (tracks["name"], tracks["required"], tracks["max_seconds"]) == ("tracks", False, None)


@pytest.mark.parametrize(
    ("status", "parts", "field", "detail"),
    [
        (415, {"video": b"#EXTM3U\nfile:///etc/passwd\n"}, "video", "a list that names other files"),
        (415, {"video": b"\x89PNG\r\n\x1a\n1234"}, "video", "this is an image (PNG): it is sent as `image`"),
        (422, {"video": FILM[:900]}, "video", "truncated or damaged"),
        (413, {"video": with_hours(FILM, 10)}, "video", "above the limit of 120 (OPSIN_MAX_VIDEO_SECONDS)"),
        (422, {"video": FILM, "tracks": ANSWER}, "tracks", "send one of them"),
        (422, {"tracks": {"persons": []}}, "tracks", "neither .npz nor JSON with `people`"),
        (422, {"tracks": [{"person": 1, "boxes": [], "poses": []}]}, "tracks", "people[0]: no boxes"),
        (422, {"tracks": [{"person": 1, "boxes": [[0.0, 1.0, 2.0, 3.0, 4.0, 0.5]]}]}, "tracks", "no poses: send them with the boxes"),
        (422, {"tracks": b"PK\x03\x04broken"}, "tracks", "an .npz that cannot be read"),
        (422, {"video": FILM, "start_s": 5}, "start_s", "the video has 0.6 seconds"),
        (422, {"video": FILM, "start_s": 1, "end_s": 0.5}, "end_s", "it must be after start_s"),
        (422, {"video": FILM, "top_k": 9}, "top_k", "from 1 to 4, the number of labels of watcher@1"),
        (422, {"video": FILM, "people": 0}, "people", "1 to 50"),
        (422, {"video": FILM, "image": "x"}, "image", "unknown"),
    ],
)
def test_refusals_name_the_field_and_what_is_wrong(gateway: Gateway, status: int, parts: Any, field: str, detail: str) -> None:
    error = refusal(gateway, status, **parts)
    assert error[0] == field and detail in error[1]


def test_tracks_make_no_clip(gateway: Gateway) -> None:
    assert refusal(gateway, 422, tracks=ANSWER, headers={"Accept": "video/mp4"})[0] == "tracks"
