"""`POST /v1/embed`: images and texts become vectors of unit length, alike whatever they are asked with."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.job_api import accepted_id, comes_to, parse
from tests.support.task_clients import NOISE, PICTURES, Speaker, cosines

TEXTS = ["a dog", "the red car of the house", "cat", "a photo of one two", "eat " * 60, "z" * 2048]
SAME = 0.99999


@pytest.mark.parametrize("pair", ["cit", "maws", "flip"])
def test_vectors_are_those_of_the_network(speaker: Speaker, pair: str) -> None:
    answer = speaker.run("embed", model=pair, text=TEXTS)
    assert (answer["kind"], answer["dim"], answer["normalized"], answer["truncated"]) == ("text", 24, True, 1)
    assert cosines(answer["embeddings"], speaker.vectors_of_texts(pair, TEXTS)).min() >= SAME
    assert np.abs(np.linalg.norm(answer["embeddings"], axis=1) - 1).max() < 1e-5
    seen = speaker.run("embed", PICTURES, model=pair, merge=2)
    assert seen["kind"] == "image"
    assert cosines(seen["embeddings"], speaker.vectors_of_images(pair, PICTURES, merge=[2, 2])).min() >= SAME


def test_images_merge_only_by_a_schedule_or_a_named_rung(speaker: Speaker) -> None:
    merged = speaker.vectors_of_images("cit", NOISE, merge=[4, 1])
    unmerged = speaker.vectors_of_images("cit", NOISE)
    assert cosines(merged, unmerged).max() < SAME
    assert cosines(speaker.run("embed", NOISE, merge="fast")["embeddings"], merged).min() >= SAME
    assert cosines(speaker.run("embed", NOISE)["embeddings"], unmerged).min() >= SAME
    field, detail = speaker.refusal(422, "embed", NOISE, merge="slow")
    assert field == "merge" and "a rung of cit@1 (fast)" in detail


def test_vectors_do_not_depend_on_what_shares_the_batch(speaker: Speaker) -> None:
    words = [f"{one} {two}" for one in ("a", "the", "red", "of the blue") for two in ("dog", "cat", "car", "house and more of it")]
    alone = np.array([speaker.run("embed", text=[word])["embeddings"][0] for word in words])
    with ThreadPoolExecutor(8) as pool:
        rotations = [words[start:] + words[:start] for start in range(len(words))]
        for start, answer in enumerate(pool.map(lambda texts: speaker.run("embed", text=texts), rotations)):
            assert cosines(answer["embeddings"], np.roll(alone, -start, axis=0)).min() >= SAME


def test_vectors_in_base64_and_in_a_file_are_the_same(speaker: Speaker) -> None:
    plain = np.array(speaker.run("embed", text=TEXTS)["embeddings"], np.float32)
    encoded = speaker.run("embed", text=TEXTS, encoding="base64")["embeddings"]
    assert np.array_equal(np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in encoded]), plain)
    response = speaker.ask("embed", text=TEXTS, headers={"Accept": "application/x-npy"})
    assert response.headers["content-type"] == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(response.content)), plain)


def test_texts_as_json_and_256_of_them(speaker: Speaker) -> None:
    many = [f"a {number}" for number in range(256)]
    answer = speaker.gateway.http.post("/v1/embed", json={"texts": many, "encoding": "base64"})
    assert answer.status_code == 200 and len(answer.json()["embeddings"]) == 256
    one = speaker.run("embed", text=["a 77"], encoding="base64")["embeddings"][0]
    assert (
        cosines([np.frombuffer(base64.b64decode(one), "<f4")], [np.frombuffer(base64.b64decode(answer.json()["embeddings"][77]), "<f4")])[0]
        >= SAME
    )


def test_merged_tokens_have_vectors_sizes_and_patches(speaker: Speaker) -> None:
    answer = speaker.run("embed", PICTURES[:2], model="maws", output="tokens", merge=3)
    for one in answer["embeddings"]:
        assert len(one["vectors"]) == len(one["sizes"]) == len(one["patches"]) == 10  # 16 patches less 3 in each of two blocks
        assert one["sizes"] == [len(patches) for patches in one["patches"]]
        assert sorted(patch for patches in one["patches"] for patch in patches) == list(range(16))
        assert np.abs(np.linalg.norm(one["vectors"], axis=1) - 1).max() < 1e-5
    response = speaker.ask("embed", PICTURES[:2], model="maws", output="tokens", merge=3, headers={"Accept": "application/x-npz"})
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content)) as file:
        assert np.allclose(file["vectors"][0], answer["embeddings"][0]["vectors"], atol=1e-6)
        assert file["owners"].shape == (2, 16) and file["sizes"].tolist() == [one["sizes"] for one in answer["embeddings"]]


def test_vectors_are_fetched_later_from_another_gateway(speaker: Speaker) -> None:
    job = accepted_id(speaker.ask("embed", text=TEXTS, headers={"Prefer": "respond-async"}))
    comes_to(speaker.gateway, job, "done")
    fetched = speaker.service.gateways[1].http.get(f"/v1/jobs/{job}/result").json()
    assert cosines(fetched["embeddings"], speaker.vectors_of_texts("cit", TEXTS)).min() >= SAME


def test_progress_counts_texts_and_not_their_jobs(speaker: Speaker) -> None:
    many = [f"the {number}" for number in range(100)]
    job = accepted_id(speaker.ask("embed", text=many, headers={"Prefer": "respond-async"}))
    assert comes_to(speaker.gateway, job, "done")["progress"] == {"done": 100, "total": 100, "unit": "texts"}
    streamed = speaker.ask("embed", text=many, headers={"Accept": "text/event-stream"}).text
    progress = [event.data for event in parse(streamed.splitlines()) if event.name == "progress"]
    assert len(progress) > 1 and {(one["total"], one["unit"]) for one in progress} == {(100, "texts")}
    assert [one["done"] for one in progress] == sorted(one["done"] for one in progress) and progress[-1]["done"] == 100


def test_progress_counts_images_while_labels_are_read(speaker: Speaker) -> None:
    labels = [f"the {number} blue" for number in range(100)]
    job = accepted_id(speaker.ask("zero-shot", PICTURES, label=labels, headers={"Prefer": "respond-async"}))
    assert comes_to(speaker.gateway, job, "done")["progress"] == {"done": 4, "total": 4, "unit": "images"}


def test_a_pair_without_a_tokenizer_embeds_images_alone(speaker: Speaker) -> None:
    assert speaker.run("embed", PICTURES, model="mute")["kind"] == "image"
    field, detail = speaker.refusal(422, "embed", model="mute", text=["a dog"])
    assert field == "text" and "opsin bundles tokenizer mute FILE" in detail


@pytest.mark.parametrize(
    ("status", "field", "says", "parts"),
    [
        (422, "text", "empty", {"text": [" "]}),
        (422, "text[1]", "empty", {"text": ["a", ""]}),
        (413, "text[1]", "at most 2048", {"text": ["a", "b" * 2049]}),
        (413, "text", "more than 256 texts", {"text": ["a"] * 257}),
        (422, "text[1]", "truncate", {"text": ["a", "eat " * 60], "truncate": "false"}),
        (422, "dimensions", "24", {"text": ["a"], "dimensions": 12}),
        (422, "pool", "cls", {"text": ["a"], "pool": "mean"}),
        (422, "output", "only available for images", {"text": ["a"], "output": "tokens"}),
        (422, "encoding", "float, base64", {"text": ["a"], "encoding": "int8"}),
        (422, "text", "one of them", {"text": ["a"], "images": PICTURES[:1]}),
        (422, "image", "at least one", {"pool": "cls"}),
        (404, "model", "is for classify", {"text": ["a"], "model": "tiny"}),
    ],
)
def test_bad_requests_are_refused_by_name(speaker: Speaker, status: int, field: str, says: str, parts: dict[str, object]) -> None:
    found, detail = speaker.refusal(status, "embed", **parts)
    assert found == field and says in detail


def test_text_that_is_no_unicode_is_refused(speaker: Speaker) -> None:
    form = speaker.gateway.http.post("/v1/embed", files=[("text", (None, b"caf\xe9"))])
    assert (form.status_code, form.json()["field"]) == (400, "text")
    json = speaker.gateway.http.post("/v1/embed", content=b'{"text": "\\ud800"}', headers={"content-type": "application/json"})
    assert json.status_code == 400


def test_a_text_without_words_is_refused_alone(speaker: Speaker) -> None:
    with ThreadPoolExecutor(8) as pool:
        empty = [pool.submit(speaker.ask, "embed", model="flip", text=["\u200b\u0001"]) for _ in range(4)]
        good = [pool.submit(speaker.run, "embed", model="flip", text=["a dog"]) for _ in range(4)]
        for response in (future.result() for future in empty):
            assert (response.status_code, response.json()["type"]) == (422, "urn:opsin:unusable-input")
        for answer in (future.result() for future in good):
            assert cosines(answer["embeddings"], speaker.vectors_of_texts("flip", ["a dog"])).min() >= SAME


def test_models_list_the_inputs_of_pairs(speaker: Speaker) -> None:
    takes = {model["name"]: [part["name"] for part in model["inputs"]] for model in speaker.gateway.http.get("/v1/models").json()["models"]}
    assert takes["cit"] == ["image", "text"] and takes["mute"] == takes["tiny"] == ["image"]
