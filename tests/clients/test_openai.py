"""OpenAI's SDK, unmodified: sync and async, as it asks by default and otherwise."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator

import httpx2
import numpy as np
import openai
import pytest

from tests.support.fake_vectors import BROKEN, DIM, color_vector, text_vector
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway

TEXTS = ["a dog", "a red car", "naïve 🙂"]


@pytest.fixture
def bodies() -> list[dict[str, object]]:
    """Return the bodies that the client has sent."""
    return []


@pytest.fixture
def client(gateway: Gateway, bodies: list[dict[str, object]]) -> Iterator[openai.OpenAI]:
    def listen(request: httpx2.Request) -> None:
        if request.content:
            bodies.append(json.loads(request.content))

    with (
        httpx2.Client(event_hooks={"request": [listen]}) as http,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.fixture
async def async_client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_its_default_asks_for_base64_and_gives_numbers(client: openai.OpenAI, bodies: list[dict[str, object]]) -> None:
    answer = client.embeddings.create(model="words", input=TEXTS)
    assert [body["encoding_format"] for body in bodies] == ["base64"]
    assert (answer.object, answer.model) == ("list", "words@1")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(text.encode()) for text in TEXTS), "a byte is a token here"
    assert [one.index for one in answer.data] == [0, 1, 2]
    np.testing.assert_array_equal(np.array([one.embedding for one in answer.data], np.float32), [text_vector(text) for text in TEXTS])


def test_numbers_and_base64_are_the_same_vectors(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model="words", input=TEXTS, encoding_format="float", dimensions=DIM, user="me")
    in_base64 = client.embeddings.create(model="words", input=TEXTS, encoding_format="base64")
    for text, one, other in zip(TEXTS, numbers.data, in_base64.data, strict=True):
        np.testing.assert_array_equal(np.array(one.embedding, np.float32), text_vector(text))
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(str(other.embedding)), "<f4"), text_vector(text))


async def test_async_it_gets_the_same(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.embeddings.create(model="words", input="a dog")
    np.testing.assert_array_equal(np.array(answer.data[0].embedding, np.float32), text_vector("a dog"))


def test_images_travel_as_input_that_its_types_do_not_know(client: openai.OpenAI) -> None:
    image = base64.b64encode(picture(3)).decode()
    mixed = client.embeddings.create(model="words", input=[{"image": image}, {"text": "a dog"}])  # type: ignore[list-item]
    expected = [color_vector(84, 40, 90), text_vector("a dog")]
    np.testing.assert_array_equal(np.array([one.embedding for one in mixed.data], np.float32), expected)
    alone = client.embeddings.create(model="encoder", input=f"data:image/png;base64,{image}", extra_body={"modality": "image"})
    np.testing.assert_array_equal(np.array(alone.data[0].embedding, np.float32), expected[0])


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [(model.id, model.object, model.owned_by) for model in models] == [
        (f"{name}@1", "model", "opsin") for name in ("encoder", "words")
    ]
    for model in models:
        assert client.models.retrieve(model.id).id == model.id
        assert client.embeddings.create(model=model.id, input=[{"image": base64.b64encode(picture(1)).decode()}]).model == model.id  # type: ignore[list-item]


def test_errors_are_its_own_with_field_and_kind(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="text-embedding-3-small", input="a dog")
    assert (unknown.value.param, unknown.value.code, unknown.value.type) == ("model", "unknown-model", "invalid_request_error")
    assert "known for embed: encoder@1, words@1" in unknown.value.message and unknown.value.request_id
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="words", input=[[1, 2, 3]])
    with pytest.raises(openai.UnprocessableEntityError) as empty:
        client.embeddings.create(model="words", input=["a dog", ""])
    assert (empty.value.param, empty.value.code) == ("input[1]", "invalid-option")
    with pytest.raises(openai.InternalServerError, match="does not like this text"):
        client.embeddings.create(model="words", input=BROKEN)
