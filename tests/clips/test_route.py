"""Clips on `POST /v1/classify`: at once, as events, later, and in the Open Inference Protocol, by the views of the published tests."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.bundles.clips import NETWORKS, OF_SOUND, expect, frames, video
from tests.support.gateway_process import Gateway
from tests.support.job_api import accepted_id, comes_to, job, parse, result

TOLERANCE = 1e-5
"""Tolerance of a score, which float32 in batches of other sizes changes."""
COUNT, FPS = 40, 10.0


def ask(gateway: Gateway, file: bytes, headers: dict[str, str] | None = None, **options: Any) -> httpx2.Response:
    return gateway.http.post("/v1/classify", files={"video": ("clip", file)}, data=options, headers=headers, timeout=120)


def scores_of(answer: Any) -> NDArray[np.float64]:
    """Return the scores by class of an answer with all labels."""
    (result,) = answer["results"]
    return np.array([label["score"] for label in sorted(result["predictions"], key=lambda label: label["index"])])


def classes(name: str) -> int:
    return int(NETWORKS[name].model().config.classes)


def classify_all_labels(gateway: Gateway, file: bytes, name: str, **options: Any) -> Any:
    return ask(gateway, file, model=name, top_k=classes(name), **options).raise_for_status().json()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (50, 40)], ids=["wide", "tall"])
def test_scores_are_those_of_the_published_test(gateway: Gateway, name: str, height: int, width: int) -> None:
    answer = classify_all_labels(gateway, video(COUNT, FPS, height, width), name)
    expected = expect(NETWORKS[name], frames(COUNT, height, width), FPS)
    np.testing.assert_allclose(scores_of(answer), expected, atol=TOLERANCE)
    model = NETWORKS[name]
    (result,) = answer["results"]
    assert result["clip"] == {"frames": model.model().config.frames, "views": model.views, "crops": model.crops, "duration_s": 4.0}
    best = int(expected.argmax())
    assert (result["predictions"][0]["label"], result["predictions"][0]["index"]) == (f"action {best}", best)


@pytest.mark.parametrize("name", ["mae-st", "rev-mvit"])
@pytest.mark.parametrize(("views", "crops"), [(1, 1), (2, 3), (30, 1)])
def test_views_and_crops_can_be_chosen(gateway: Gateway, name: str, views: int, crops: int) -> None:
    answer = classify_all_labels(gateway, video(COUNT, FPS), name, views=views, crops=crops)
    np.testing.assert_allclose(scores_of(answer), expect(NETWORKS[name], frames(COUNT), FPS, views, crops), atol=TOLERANCE)
    assert (answer["results"][0]["clip"]["views"], answer["results"][0]["clip"]["crops"]) == (views, crops)


def test_video_shorter_than_a_view_repeats_its_last_frame(gateway: Gateway) -> None:
    answer = classify_all_labels(gateway, video(3, 30.0), "mvit2")
    np.testing.assert_allclose(scores_of(answer), expect(NETWORKS["mvit2"], frames(3), 30.0), atol=TOLERANCE)


def test_a_part_of_a_video_is_what_lies_between_its_seconds(gateway: Gateway) -> None:
    answer = classify_all_labels(gateway, video(COUNT, FPS), "mae-st", start_s=1.5, end_s=3.25)
    part = frames(COUNT)[15:33]
    np.testing.assert_allclose(scores_of(answer), expect(NETWORKS["mae-st"], part, FPS), atol=TOLERANCE)
    assert answer["results"][0]["clip"]["duration_s"] == 1.75


def test_merging_is_reported_and_changes_the_scores(gateway: Gateway) -> None:
    plain, merged = (classify_all_labels(gateway, video(COUNT, FPS), "mae-st", merge=merge) for merge in ("off", 6))
    assert plain["results"][0]["merging"] == {"rung": None, "schedule": [0, 0, 0], "tokens_in": 65, "tokens_out": 65}
    assert merged["results"][0]["merging"] == {"rung": None, "schedule": [6, 6, 6], "tokens_in": 65, "tokens_out": 47}
    assert np.abs(scores_of(plain) - scores_of(merged)).max() > 100 * TOLERANCE


def test_a_clip_may_end_at_any_time_after_its_start(gateway: Gateway) -> None:
    file = video(COUNT, FPS)
    late, usual = (ask(gateway, file, views=1, crops=1, **end).raise_for_status().json() for end in ({"end_s": 1e308}, {}))
    assert late["results"] == usual["results"]


def test_json_and_a_form_say_the_same(gateway: Gateway) -> None:
    file = video(COUNT, FPS)
    in_form = ask(gateway, file, views=2, top_k=2).raise_for_status().json()
    document = {"video": base64.b64encode(file).decode(), "views": 2, "top_k": 2}
    in_json = gateway.http.post("/v1/classify", json=document, timeout=120).raise_for_status().json()
    assert in_form["model"] == "mae-st" and in_json["results"] == in_form["results"] and len(in_form["results"][0]["predictions"]) == 2


def test_views_are_reported_as_they_end_and_answer_is_the_same(gateway: Gateway) -> None:
    file, headers = video(COUNT, FPS), {"Accept": "text/event-stream"}
    with gateway.http.stream("POST", "/v1/classify", files={"video": file}, headers=headers, timeout=120) as response:
        events = list(parse(response.iter_lines()))
    assert [event.name for event in events if event.name != "progress"] == ["queued", "started", "done"]
    progress = [event.data for event in events if event.name == "progress"]
    assert {(one["total"], one["unit"]) for one in progress} == {(21, "views")} and progress[-1]["done"] == 21
    assert [one["done"] for one in progress] == sorted(one["done"] for one in progress)
    assert events[-1].data["results"] == ask(gateway, file).raise_for_status().json()["results"]


def test_a_job_has_the_answer_later(gateway: Gateway) -> None:
    file = video(COUNT, FPS)
    job_id = accepted_id(ask(gateway, file, {"Prefer": "respond-async"}))
    document = comes_to(gateway, job_id, "done")
    assert (document["task"], document["model"], document["progress"]) == ("classify", "mae-st", {"done": 21, "total": 21, "unit": "views"})
    later = result(gateway, job_id).raise_for_status().json()
    assert later["results"] == ask(gateway, file).raise_for_status().json()["results"]
    assert job(gateway, job_id)["state"] == "done"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_open_inference_protocol_gives_scores_and_labels(gateway: Gateway, name: str) -> None:
    count = classes(name)
    metadata = gateway.http.get(f"/v2/models/{name}").json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["inputs"]] == [("video", "BYTES", [-1, 1])]
    assert [(one["name"], one["shape"]) for one in metadata["outputs"]] == [("scores", [-1, count]), ("labels", [-1, min(5, count)])]
    files = [video(COUNT, FPS), video(COUNT, FPS, seed=1)]
    data = [base64.b64encode(file).decode() for file in files]
    body = {"inputs": [{"name": "video", "datatype": "BYTES", "shape": [2], "data": data}]}
    answer = gateway.http.post(f"/v2/models/{name}/infer", json=body, timeout=120).raise_for_status().json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    scores = np.array(outputs["scores"]["data"]).reshape(2, count)
    expected = [expect(NETWORKS[name], frames(COUNT, seed=seed), FPS) for seed in (0, 1)]
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert outputs["labels"]["data"][0] == f"action {int(expected[0].argmax())}"


def test_strangers_share_batches_and_no_answer_changes(gateway: Gateway) -> None:
    files = [video(COUNT, FPS, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(len(files)) as pool:
        answers = list(pool.map(lambda file: classify_all_labels(gateway, file, "mae-st"), files))
    for seed, answer in enumerate(answers):
        np.testing.assert_allclose(scores_of(answer), expect(NETWORKS["mae-st"], frames(COUNT, seed=seed), FPS), atol=TOLERANCE)
    assert max(answer["timing"]["batch_size"] for answer in answers) > 1


def test_the_list_of_models_says_what_each_takes(gateway: Gateway) -> None:
    models = {model["name"]: model for model in gateway.http.get("/v1/models").json()["models"]}
    assert models.keys() == {*NETWORKS, *OF_SOUND, "sound-alone"}
    [part] = models["sound-alone"]["inputs"]
    assert (part["name"], part["required"]) == ("audio", True)
    assert {name for name, model in models.items() if model["default"]} == {"mae-st", "both", "apart"}
    for name, required in (("both", [True, False]), ("apart", [False, False])):
        inputs = [(part["name"], part["kind"], part["max_seconds"]) for part in models[name]["inputs"]]
        assert inputs == [("video", "video", 60), ("audio", "audio", 60)]
        assert [part["required"] for part in models[name]["inputs"]] == required
    for model in (models[name] for name in NETWORKS):
        (part,) = model["inputs"]
        assert (model["task"], model["route"], model["state"]) == ("actions", "classify", "ready")
        assert (part["name"], part["required"], part["max_seconds"]) == ("video", True, 60)
