"""Zero-shot classification by the client from the real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from opsin import AsyncClient, Client, Refused
from opsin.image_encoding import png
from tests.opsin.embedding.conftest import MAX_IMAGES
from tests.support.bundles.vit import TINY
from tests.support.live_service import Service

LABELS = ["a red car", "dog", "cat", "photo", "something else"]
MANY = 2 * MAX_IMAGES + 3
IMAGES = [np.random.default_rng(seed).integers(0, 256, (TINY.image_size, TINY.image_size, 3), np.uint8) for seed in range(MANY)]


@pytest.fixture
def client(embedding_service: Service) -> Iterator[Client]:
    with Client(embedding_service.url) as opened:
        yield opened


def cosines(client: Client, image: NDArray[np.uint8], templates: list[str]) -> NDArray[np.float64]:
    """Return the cosines (labels,) of the vectors that the client embeds."""
    texts = client.embed(texts=[template.replace("{}", label) for label in LABELS for template in templates]).vectors
    classes = texts.astype(np.float64).reshape(len(LABELS), len(templates), -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    return classes @ client.embed(image).vectors[0]


@pytest.mark.parametrize("templates", [None, ["{}"], ["one {}", "two {}s"]])
def test_scores_are_the_softmax_of_scaled_cosines(client: Client, templates: list[str] | None) -> None:
    found = client.zero_shot(IMAGES[0], LABELS, templates=templates, top_k=len(LABELS))
    expected = cosines(client, IMAGES[0], templates or ["a photo of a {}.", "a {}"])
    powers = np.exp(np.exp(3.0) * expected)
    assert [one.index for one in found.predictions] == np.argsort(-expected).tolist()
    for one in found.predictions:
        assert one.label == LABELS[one.index]
        assert one.cosine == pytest.approx(expected[one.index], abs=2e-6)
        assert one.score == pytest.approx(powers[one.index] / powers.sum(), abs=1e-4)
    assert (found.label, found.score) == (found.predictions[0].label, found.predictions[0].score)
    assert (found.model, found.version, found.labels.count, found.labels.truncated) == ("pair", "1", 5, 0)
    assert list(found.templates) == (templates or ["a photo of a {}.", "a {}"])
    assert found.merging is not None and found.merging.tokens_in == 17


def test_vectors_of_labels_are_recalled(client: Client) -> None:
    labels = ["new label", "newer label"]
    assert [client.zero_shot(IMAGES[0], labels).labels.cached for _ in range(2)] == [0, 2]


def test_more_images_than_one_request_may_bring_keep_their_order(client: Client, embedding_service: Service) -> None:
    form: dict[str, Any] = {"files": [("image", (f"{index}", png(one))) for index, one in enumerate(IMAGES)], "data": {"label": LABELS}}
    assert httpx2.post(f"{embedding_service.url}/v1/zero-shot", **form).status_code == 413
    joint = client.zero_shot(IMAGES, LABELS)
    alone = [client.zero_shot(one, LABELS) for one in IMAGES]
    assert [[one.index for one in found.predictions] for found in joint] == [[one.index for one in found.predictions] for found in alone]
    with pytest.raises(Refused) as raised:
        client.zero_shot([*IMAGES[:9], b"no image"], LABELS)
    assert raised.value.field == "image[9]"


def test_a_threshold_leaves_out_what_is_not_alike(client: Client) -> None:
    found = client.zero_shot(IMAGES[0], LABELS, threshold=1)
    assert (found.predictions, found.label, found.score) == ((), None, None)
    assert "0 of 5 labels" in found._repr_html_()
    best = client.zero_shot(IMAGES[0], LABELS).predictions[0]
    assert [one.label for one in client.zero_shot(IMAGES[0], LABELS, threshold=best.cosine - 1e-6).predictions] == [best.label]


def test_it_is_answered_later_too(client: Client) -> None:
    labels = [f"label {number}" for number in range(70)]
    job = client.zero_shot(IMAGES[:2], labels, wait=False)
    later = job.result(timeout=60)
    at_once = client.zero_shot(IMAGES[:2], labels)
    assert [found.label for found in later] == [found.label for found in at_once]
    assert client.zero_shot(IMAGES[0], labels, wait=False).result(timeout=60).label == at_once[0].label


@pytest.mark.parametrize(
    ("labels", "options", "status", "field"),
    [
        (["dog", "dog "], {}, 422, "label[1]"),
        (["dog", ""], {}, 422, "label[1]"),
        (["dog", "a" * 257], {}, 413, "label[1]"),
        (["dog"] * 1001, {}, 413, "label"),
        (LABELS, {"templates": ["no place"]}, 422, "template[0]"),
        (LABELS, {"top_k": 6}, 422, "top_k"),
        (LABELS, {"threshold": 2}, 422, "threshold"),
        (LABELS, {"merge": "warp"}, 422, "merge"),
        (LABELS, {"model": "encoder"}, 404, "model"),
    ],
)
def test_a_refusal_names_the_field(client: Client, labels: list[str], options: dict[str, Any], status: int, field: str) -> None:
    with pytest.raises(Refused) as raised:
        client.zero_shot(IMAGES[0], labels, **options)
    assert (raised.value.status, raised.value.field) == (status, field)


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "reason"),
    [
        (IMAGES[0], "dog", {}, TypeError, r"labels: a list of texts, such as \['dog'\]"),
        (IMAGES[0], [], {}, ValueError, "labels: at least one"),
        (IMAGES[0], ["dog", "\ud800"], {}, ValueError, r"labels\[1\]: .* lone surrogate"),
        (IMAGES[0], ["dog"], {"templates": "a {}"}, TypeError, "templates: a list of texts"),
        (IMAGES[0], ["dog"], {"templates": []}, ValueError, "templates: at least one"),
        ([], ["dog"], {}, ValueError, "images: at least one"),
        (IMAGES[0], ["dog"], {"template": "a"}, TypeError, "no option 'template'; the options are .*model, templates"),
    ],
)
def test_what_is_no_question_is_not_sent(images: Any, labels: Any, options: dict[str, Any], error: type[Exception], reason: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(error, match=reason):
        client.zero_shot(images, labels, **options)


async def test_the_asynchronous_client_does_the_same(embedding_service: Service, client: Client) -> None:
    async with AsyncClient(embedding_service.url) as asynchronous:
        joint = await asynchronous.zero_shot(IMAGES, LABELS)
        one = await asynchronous.zero_shot(IMAGES[0], LABELS)
        job = await asynchronous.zero_shot(IMAGES[0], LABELS, wait=False)
        later = await job.result(timeout=60)
        mapped = await asynchronous.map("zero-shot", IMAGES, labels=LABELS, progress=False)
        with pytest.raises(Refused) as raised:
            await asynchronous.zero_shot([*IMAGES[:9], b"no image"], LABELS)
    expected = [found.label for found in client.zero_shot(IMAGES, LABELS)]
    assert [found.label for found in joint] == expected == [found.label for found in mapped.results]
    assert one.label == later.label == expected[0]
    assert raised.value.field == "image[9]"


def test_map_classifies_a_folder_by_labels(client: Client, tmp_path: Path) -> None:
    for index, one in enumerate(IMAGES):
        (tmp_path / f"{index:02}.png").write_bytes(png(one))
    outcomes = client.map("zero-shot", tmp_path, labels=LABELS, top_k=1, progress=False)
    assert [found.label for found in outcomes.results] == [found.label for found in client.zero_shot(IMAGES, LABELS)]
    assert outcomes.results[0].label in outcomes._repr_html_()
    nothing = client.map("zero-shot", tmp_path, labels=LABELS, threshold=1, progress=False)
    assert "no label" in nothing._repr_html_()
    with pytest.raises(TypeError, match="map: zero-shot has no option 'label'"):
        client.map("zero-shot", tmp_path, label=LABELS, progress=False)
    with pytest.raises(TypeError, match="labels"):
        client.map("zero-shot", tmp_path, progress=False)
    with pytest.raises(Refused, match="'encoder' is not served for zero-shot; known: drawings@1, pair@1"):
        client.map("zero-shot", tmp_path, labels=LABELS, model="encoder", progress=False)


def test_a_result_is_shown_as_bars(client: Client) -> None:
    visible = client.zero_shot(IMAGES[0], ["<b>", "dog"])._repr_html_()
    assert "&lt;b&gt;" in visible and "2 of 2 labels, pair@1" in visible
