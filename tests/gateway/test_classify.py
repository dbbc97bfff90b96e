"""`POST /v1/classify`, as a client sees it when all goes well."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.fake_worker import CLASSES, DEPTH, TOKENS, picture
from tests.support.gateway_process import Gateway


def best(response: object) -> list[str]:
    return [result["predictions"][0]["label"] for result in response.json()["results"]]


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain", None])
def test_the_body_is_an_image_whatever_the_content_type_says(gateway: Gateway, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert best(gateway.classify(picture(3), headers=headers)) == ["red 3"]


def test_several_parts_of_a_form_are_answered_in_their_order(gateway: Gateway) -> None:
    assert best(gateway.classify_all(*map(picture, (7, 1, 9, 0)))) == ["red 7", "red 1", "red 9", "red 0"]


def test_json_carries_images_in_base64(gateway: Gateway) -> None:
    one, other = (base64.b64encode(picture(step)).decode() for step in (2, 8))
    assert best(gateway.http.post("/v1/classify", json={"image": one})) == ["red 2"]
    assert best(gateway.http.post("/v1/classify", json={"images": [one, other], "top_k": 1})) == ["red 2", "red 8"]


def test_an_answer_has_every_field_of_the_contract(gateway: Gateway) -> None:
    answer = gateway.classify(picture(4), top_k=3, headers={"X-Request-ID": "mine-1"}).json()
    assert set(answer) == {"id", "model", "version", "results", "timing", "note"}
    assert (answer["id"], answer["model"], answer["version"], answer["note"]) == ("mine-1", "reds", "1", "For tests.")
    (result,) = answer["results"]
    scores = [prediction["score"] for prediction in result["predictions"]]
    assert result["predictions"][0]["index"] == 4
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert result["merging"] == {"rung": None, "schedule": [0] * DEPTH, "tokens_in": TOKENS, "tokens_out": TOKENS}
    timing = answer["timing"]
    assert set(timing) == {"prepare_ms", "queue_ms", "batch_wait_ms", "inference_ms", "total_ms", "batch_size"}
    assert (timing["batch_wait_ms"], timing["inference_ms"], timing["batch_size"]) == (0.5, 1.5, 1)
    assert timing["total_ms"] >= timing["prepare_ms"] > 0 and timing["queue_ms"] >= 0


def test_scores_are_a_softmax_over_all_classes(gateway: Gateway) -> None:
    predictions = gateway.classify(picture(5), top_k=CLASSES).json()["results"][0]["predictions"]
    assert sum(prediction["score"] for prediction in predictions) == pytest.approx(1, abs=1e-6)
    assert sorted(prediction["index"] for prediction in predictions) == list(range(CLASSES))


@pytest.mark.parametrize(
    ("merge", "rung", "schedule"),
    [
        ("off", None, [0, 0, 0, 0]),
        ("2", None, [2, 2, 2, 2]),
        ("0", None, [0, 0, 0, 0]),
        ("gentle", "gentle", [1, 1, 1, 1]),
        ("strong", "strong", [4, 2, 0, 0]),
    ],
)
def test_merge_is_off_or_an_integer_or_a_rung(gateway: Gateway, merge: str, rung: str | None, schedule: list[int]) -> None:
    merging = gateway.classify(picture(1), merge=merge).json()["results"][0]["merging"]
    assert merging == {"rung": rung, "schedule": schedule, "tokens_in": TOKENS, "tokens_out": TOKENS - sum(schedule)}


def test_options_come_in_the_url_in_the_form_or_in_the_json(gateway: Gateway) -> None:
    image = picture(6)
    answers = [
        gateway.classify(image, top_k=2, merge=1, model="reds@1", priority="high"),
        gateway.classify_all(image, fields={"top_k": "2", "merge": "1", "model": "reds@1", "priority": "high"}),
        gateway.http.post(
            "/v1/classify",
            json={"image": base64.b64encode(image).decode(), "top_k": 2, "merge": 1, "model": "reds@1", "priority": "high"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({str(answer.json()["results"]) for answer in answers}) == 1
    assert len(answers[0].json()["results"][0]["predictions"]) == 2


def test_priorities_reach_the_queue(gateway: Gateway, worker: object) -> None:
    before = len(worker.done)
    gateway.classify(picture(1), priority="low")
    gateway.classify(picture(1), priority="high")
    assert [job.priority for job in worker.done[before:]] == ["low", "high"]


def test_hundred_different_images_at_once_get_their_own_answers(gateway: Gateway) -> None:
    steps = [index % CLASSES for index in range(100)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda step: best(gateway.classify(picture(step))), steps))
    assert answers == [[f"red {step}"] for step in steps]


def test_a_request_id_is_made_where_none_came(gateway: Gateway) -> None:
    first, second = gateway.classify(picture(1)), gateway.classify(picture(1))
    assert first.headers["X-Request-ID"] == first.json()["id"] != second.json()["id"]


def test_a_request_id_is_echoed_without_what_could_break_a_log(gateway: Gateway) -> None:
    assert gateway.http.get("/health/live", headers={"X-Request-ID": 'a"b\\c{d} <e>\t1'}).headers["X-Request-ID"] == "abcde1"
    assert len(gateway.http.get("/health/live", headers={"X-Request-ID": "x" * 1000}).headers["X-Request-ID"]) == 128
