"""`POST /v1/zero-shot`: images are classified by labels that come with them."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest

from server.gateway.jobs.service import RESULT_OVERHEAD_BYTES
from tests.support.job_api import accepted_id, comes_to
from tests.support.queue import redis_at
from tests.support.task_clients import NOISE, PICTURES, TEMPLATES, Speaker, Vectors
from tests.support.waiting import eventually

LABELS = ["dog", "red car", "house", "one two"]
SCALE = np.exp(3.0)


def reference(speaker: Speaker, pair: str, labels: list[str], templates: list[str], images: list[bytes]) -> tuple[Vectors, Vectors]:
    """Return scores and cosines: (images, labels)."""
    texts = [template.replace("{}", label) for label in labels for template in templates]
    classes = speaker.vectors_of_texts(pair, texts).reshape(len(labels), len(templates), -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines = speaker.vectors_of_images(pair, images) @ classes.T
    powers = np.exp(SCALE * (cosines - cosines.max(axis=1, keepdims=True)))
    return powers / powers.sum(axis=1, keepdims=True), cosines


def values(answer: dict[str, Any], name: str) -> Vectors:
    """Return a field of the predictions in the order of the labels: (images, labels)."""
    return np.array([[one[name] for one in sorted(result["predictions"], key=lambda one: one["index"])] for result in answer["results"]])


@pytest.mark.parametrize("pair", ["cit", "maws", "flip"])
def test_scores_are_the_softmax_of_scaled_cosines(speaker: Speaker, pair: str) -> None:
    answer = speaker.run("zero-shot", PICTURES, model=pair, label=LABELS)
    templates = TEMPLATES if pair == "cit" else ["{}"]
    scores, cosines = reference(speaker, pair, LABELS, templates, PICTURES)
    assert np.abs(values(answer, "cosine") - cosines).max() < 1e-5 and np.abs(values(answer, "score") - scores).max() < 1e-4
    assert answer["templates"] == templates
    for result in answer["results"]:
        assert [one["score"] for one in result["predictions"]] == sorted((one["score"] for one in result["predictions"]), reverse=True)
        assert result["merging"]["tokens_in"] == 17


def test_images_merge_only_by_a_named_rung(speaker: Speaker) -> None:
    answers = {merge: speaker.run("zero-shot", NOISE, label=LABELS, **({"merge": merge} if merge else {})) for merge in ("", "fast")}
    texts = [template.replace("{}", label) for label in LABELS for template in TEMPLATES]
    classes = speaker.vectors_of_texts("cit", texts).reshape(len(LABELS), len(TEMPLATES), -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    for merge, schedule, left in (("", [0, 0], 17), ("fast", [4, 1], 12)):
        expected = speaker.vectors_of_images("cit", NOISE, merge=schedule) @ classes.T
        assert np.abs(values(answers[merge], "cosine") - expected).max() < 1e-5
        merging = answers[merge]["results"][0]["merging"]
        assert (merging["rung"], merging["schedule"], merging["tokens_out"]) == (merge or None, schedule, left)
    assert np.abs(values(answers["fast"], "cosine") - values(answers[""], "cosine")).max() > 1e-4


def test_templates_and_labels_of_the_request_win(speaker: Speaker) -> None:
    answer = speaker.run("zero-shot", PICTURES[:1], label=[" dog ", "cat"], template=["the {} of a house", "{}"])
    scores, _ = reference(speaker, "cit", ["dog", "cat"], ["the {} of a house", "{}"], PICTURES[:1])
    assert np.abs(values(answer, "score") - scores).max() < 1e-4
    assert {one["label"] for one in answer["results"][0]["predictions"]} == {"dog", "cat"}
    as_json = {"labels": ["dog", "cat"], "templates": ["{}"], "top_k": 1, "threshold": -1}
    form = speaker.run("zero-shot", PICTURES[:1], label=["dog", "cat"], template=["{}"], top_k=1)
    sent = speaker.gateway.http.post("/v1/zero-shot", json={"image": base64.b64encode(PICTURES[0]).decode(), **as_json})
    assert sent.json()["results"][0]["predictions"] == form["results"][0]["predictions"]


def test_a_threshold_hides_labels_that_are_far(speaker: Speaker) -> None:
    every = speaker.run("zero-shot", PICTURES[:1], label=LABELS)["results"][0]["predictions"]
    middle = (every[1]["cosine"] + every[2]["cosine"]) / 2
    some = speaker.run("zero-shot", PICTURES[:1], label=LABELS, threshold=middle)["results"][0]["predictions"]
    assert some == [one for one in every if one["cosine"] >= middle]


def test_labels_are_read_once_by_all_gateways(speaker: Speaker) -> None:
    labels = ["blue house", "green car", "red dog"]
    first = speaker.run("zero-shot", PICTURES[:1], model="maws", label=labels)
    assert first["labels"] == {"count": 3, "cached": 0, "truncated": 0}
    again = speaker.run("zero-shot", PICTURES[:1], model="maws", label=labels)
    assert again["labels"]["cached"] == 3 and again["results"] == first["results"]
    other = eventually_cached(speaker, labels)
    assert np.abs(values(other, "score") - values(first, "score")).max() < 1e-6


def eventually_cached(speaker: Speaker, labels: list[str]) -> dict[str, Any]:
    """Return the second gateway's answer once Redis holds the vectors that the first has computed."""
    answers: list[dict[str, Any]] = []

    def cached() -> bool:
        answers.append(speaker.run("zero-shot", PICTURES[:1], model="maws", label=[*labels, f"dog {len(answers)}"], gateway=1))
        return answers[-1]["labels"]["cached"] == len(labels)

    eventually(cached, "the second gateway recalls them")
    return speaker.run("zero-shot", PICTURES[:1], model="maws", label=labels, gateway=1)


def test_two_bundles_never_share_a_vector(speaker: Speaker) -> None:
    for pair in ("cit", "maws", "flip"):
        answer = speaker.run("zero-shot", PICTURES[:1], model=pair, label=LABELS, template=["{}"])
        scores, _ = reference(speaker, pair, LABELS, ["{}"], PICTURES[:1])
        assert np.abs(values(answer, "score") - scores).max() < 1e-4


def test_too_long_label_is_refused_cached_or_not(speaker: Speaker) -> None:
    long = "eat " * 50
    for cached in (0, 2):
        counts = speaker.run("zero-shot", PICTURES[:1], model="maws", label=["dog in time", long])["labels"]
        assert counts == {"count": 2, "cached": cached, "truncated": 1}


def test_a_job_that_is_fetched_later_holds_what_was_recalled(speaker: Speaker) -> None:
    now = speaker.run("zero-shot", PICTURES, label=LABELS)
    job = accepted_id(speaker.ask("zero-shot", PICTURES, label=[*LABELS, "cat"], headers={"Prefer": "respond-async"}))
    comes_to(speaker.gateway, job, "done")
    later = speaker.service.gateways[1].http.get(f"/v1/jobs/{job}/result").json()
    assert later["labels"] == {"count": 5, "cached": 4, "truncated": 0}
    scores, _ = reference(speaker, "cit", [*LABELS, "cat"], TEMPLATES, PICTURES)
    assert np.abs(values(later, "score") - scores).max() < 1e-4
    assert [result["merging"] for result in later["results"]] == [result["merging"] for result in now["results"]]


def test_room_for_a_job_counts_what_was_recalled_once(speaker: Speaker) -> None:
    labels = ["one house", "two houses", "three houses"]
    speaker.run("zero-shot", PICTURES[:1], model="maws", label=labels)
    job = accepted_id(speaker.ask("zero-shot", PICTURES, model="maws", label=labels, headers={"Prefer": "respond-async"}))
    with redis_at(speaker.service.redis_url) as db:
        plan, bound = db.hmget(f"record:{job}", "plan", "bound")
    assert plan.count(b"houses") == 4  # with their vectors
    assert int(bound) == len(plan) + len(PICTURES) * (4 * 24 + 8 + RESULT_OVERHEAD_BYTES)


def test_a_flood_of_labels_leaves_those_of_others(speaker: Speaker) -> None:
    quiet = {"X-Forwarded-For": "198.51.100.7"}
    labels = ["quiet dog", "quiet cat"]
    speaker.run("zero-shot", PICTURES[:1], model="flip", label=labels, headers=quiet)
    with ThreadPoolExecutor(4) as pool:
        floods = [[f"dog {100 * batch + number}" for number in range(100)] for batch in range(30)]
        list(pool.map(lambda labels: speaker.run("zero-shot", PICTURES[:1], model="flip", label=labels), floods))
    assert speaker.run("zero-shot", PICTURES[:1], model="flip", label=labels, headers=quiet)["labels"]["cached"] == 2


def test_client_with_full_share_keeps_its_latest_labels(speaker: Speaker) -> None:
    client = {"X-Forwarded-For": "198.51.100.8"}
    for first in range(0, 400, 50):  # a share has room for some 200
        labels = [f"cat {number}" for number in range(first, first + 50)]
        for cached in (0, 50):
            counts = speaker.run("zero-shot", PICTURES[:1], model="flip", label=labels, headers=client)["labels"]
            assert counts == {"count": 50, "cached": cached, "truncated": 0}


def test_labels_in_the_url_are_utf_8(speaker: Speaker) -> None:
    def post(query: str) -> httpx2.Response:
        return speaker.gateway.http.post(f"/v1/zero-shot?{query}", content=PICTURES[0])

    (best, _) = post("label=caf%C3%A9&label=%F0%9F%90%95").json()["results"][0]["predictions"]
    assert best["label"] in {"café", "🐕"}
    for broken in ("%FF", "%ED%A0%80", "caf%E9"):
        problem = post(f"label=dog&label={broken}")
        assert (problem.status_code, problem.json()["field"]) == (400, "label")
    assert post("label=dog&%FF=1").json()["detail"].startswith("unknown")


@pytest.mark.parametrize("name", ["label", "template"])
def test_an_empty_list_is_not_taken_for_none(speaker: Speaker, name: str) -> None:
    body = {"image": base64.b64encode(PICTURES[0]).decode(), "labels": ["dog"], f"{name}s": []}
    refused = speaker.gateway.http.post("/v1/zero-shot", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, name)


def test_a_label_without_a_word_is_refused(speaker: Speaker) -> None:
    """FLIP's texts have no special tokens: nothing is left of what its tokenizer drops."""
    empty = "\u200d"
    options = {"model": "flip", "label": ["dog", empty]}
    assert speaker.refusal(422, "zero-shot", PICTURES[:2], **options)[0] == "label"
    job = accepted_id(speaker.ask("zero-shot", PICTURES[:2], headers={"Prefer": "respond-async"}, **options))
    assert comes_to(speaker.gateway, job, "failed")["error"]["field"] == "label"
    texts = [*["dog"] * 100, empty, *["a photo of the house"] * 100]
    job = accepted_id(speaker.ask("embed", model="flip", text=texts, headers={"Prefer": "respond-async"}))
    assert comes_to(speaker.gateway, job, "failed")["error"]["field"] == "text"


@pytest.mark.parametrize(
    ("status", "field", "says", "options"),
    [
        (422, "label", "1 to 1,000", {}),
        (422, "label[1]", "empty", {"label": ["a", " "]}),
        (422, "label[2]", "given twice", {"label": ["a", "b", " a"]}),
        (413, "label[0]", "at most 256", {"label": ["a" * 257]}),
        (413, "label", "at most 1,000", {"label": [f"a {number}" for number in range(1001)]}),
        (422, "template[0]", "`{}` once", {"label": ["a"], "template": ["a photo"]}),
        (422, "template[1]", "`{}` once", {"label": ["a"], "template": ["{}", "{} {}"]}),
        (413, "template", "at most 100", {"label": ["a"], "template": ["{}"] * 101}),
        (
            413,
            "template",
            "at most 7,000",
            {"label": [f"a {number}" for number in range(701)], "template": [f"{{}} {n}" for n in range(10)]},
        ),
        (422, "top_k", "from 1 to 2", {"label": ["a", "b"], "top_k": 3}),
        (422, "threshold", "from -1 to 1", {"label": ["a"], "threshold": 2}),
        (422, "merge", "off", {"label": ["a"], "merge": "much"}),
        (422, "label", "opsin bundles tokenizer mute FILE", {"label": ["a"], "model": "mute"}),
        (404, "model", "is for classify", {"label": ["a"], "model": "tiny"}),
    ],
)
def test_bad_requests_are_refused_by_name(speaker: Speaker, status: int, field: str, says: str, options: dict[str, object]) -> None:
    found, detail = speaker.refusal(status, "zero-shot", PICTURES[:1], **options)
    assert found == field and says in detail
