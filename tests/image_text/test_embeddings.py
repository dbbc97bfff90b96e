"""`POST /v1/embeddings` with networks behind it: OpenAI's SDK gets their vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.support.task_clients import PICTURES, Speaker, cosines

TEXTS = ["a dog", "the red car of the house", "one two", "eat " * 60]
SAME = 0.99999


@pytest.fixture
def client(speaker: Speaker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaker.gateway.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("pair", ["cit", "maws", "flip"])
def test_vectors_of_images_and_texts_are_those_of_the_network(speaker: Speaker, client: openai.OpenAI, pair: str) -> None:
    images = [{"image": base64.b64encode(image).decode()} for image in PICTURES]
    mixed = [part for both in zip(images, TEXTS, strict=True) for part in both]
    answer = client.embeddings.create(model=pair, input=mixed)  # type: ignore[arg-type]
    vectors = np.array([one.embedding for one in answer.data])
    assert cosines(vectors[0::2], speaker.vectors_of_images(pair, PICTURES)).min() >= SAME
    assert cosines(vectors[1::2], speaker.vectors_of_texts(pair, TEXTS)).min() >= SAME
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert (answer.model, answer.model_dump()["truncated"]) == (f"{pair}@1", 1)


@pytest.mark.parametrize(("pair", "special"), [("cit", 2), ("maws", 2), ("flip", 0)])
def test_usage_counts_word_pieces_and_patches(client: openai.OpenAI, pair: str, special: int) -> None:
    image = {"image": base64.b64encode(PICTURES[0]).decode()}
    usage = client.embeddings.create(model=pair, input=[image, "a dog", "the blue house"]).usage  # type: ignore[arg-type]
    assert usage.prompt_tokens == usage.total_tokens == (4 * 4 + 1) + (2 + special) + (3 + special)


def test_the_default_is_that_of_embed(speaker: Speaker) -> None:
    answer = speaker.gateway.http.post("/v1/embeddings", json={"input": TEXTS}).json()
    assert answer["model"] == "cit@1"
    assert cosines([one["embedding"] for one in answer["data"]], speaker.run("embed", text=TEXTS)["embeddings"]).min() >= SAME


def test_a_pair_without_a_tokenizer_takes_images_alone(client: openai.OpenAI) -> None:
    image = base64.b64encode(PICTURES[0]).decode()
    assert len(client.embeddings.create(model="mute", input=[{"image": image}]).data) == 1  # type: ignore[list-item]
    with pytest.raises(openai.UnprocessableEntityError, match="opsin bundles tokenizer mute FILE"):
        client.embeddings.create(model="mute", input=["a dog"])
