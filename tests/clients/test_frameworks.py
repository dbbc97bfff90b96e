"""LangChain, LlamaIndex and infinity's client, unmodified. They are large: `make test-slow` installs them, by the extra `clients`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.support.fake_vectors import color_vector, text_vector
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway

pytestmark = pytest.mark.slow
TEXTS = [f"text {number}" for number in range(300)]
EXPECTED = np.stack([text_vector(text) for text in TEXTS])


def library(name: str) -> Any:
    """Import a library when a test runs: it takes seconds."""
    return pytest.importorskip(name, reason="the extra `clients` is not installed")


def langchain(gateway: Gateway, **options: object) -> Any:
    langchain_openai = library("langchain_openai")
    return langchain_openai.OpenAIEmbeddings(base_url=f"{gateway.url}/v1", api_key="-", model="words", max_retries=0, **options)


def test_langchain_embeds_documents_and_queries(gateway: Gateway) -> None:
    embeddings = langchain(gateway, check_embedding_ctx_length=False, chunk_size=128)
    np.testing.assert_array_equal(np.array(embeddings.embed_documents(TEXTS), np.float32), EXPECTED)
    np.testing.assert_array_equal(np.array(embeddings.embed_query(TEXTS[7]), np.float32), EXPECTED[7])


async def test_langchain_embeds_documents_and_queries_async(gateway: Gateway) -> None:
    embeddings = langchain(gateway, check_embedding_ctx_length=False, chunk_size=128)
    np.testing.assert_array_equal(np.array(await embeddings.aembed_documents(TEXTS), np.float32), EXPECTED)
    np.testing.assert_array_equal(np.array(await embeddings.aembed_query(TEXTS[7]), np.float32), EXPECTED[7])


async def test_llama_index_embeds_texts_and_queries(gateway: Gateway) -> None:
    llama_index = library("llama_index.embeddings.openai")
    model = llama_index.OpenAIEmbedding(model_name="words", api_base=f"{gateway.url}/v1", api_key="-", embed_batch_size=128, max_retries=0)
    np.testing.assert_array_equal(np.array(model.get_text_embedding_batch(TEXTS), np.float32), EXPECTED)
    np.testing.assert_array_equal(np.array(model.get_query_embedding(TEXTS[7]), np.float32), EXPECTED[7])
    np.testing.assert_array_equal(np.array(await model.aget_text_embedding_batch(TEXTS), np.float32), EXPECTED)


def test_infinitys_client_embeds_texts_and_images(gateway: Gateway) -> None:
    infinity = library("infinity_client")
    from infinity_client.api.default import embeddings
    from infinity_client.models import OpenAIEmbeddingInputImage, OpenAIEmbeddingInputText, OpenAIEmbeddingResult

    image = f"data:image/png;base64,{base64.b64encode(picture(3)).decode()}"
    with infinity.Client(base_url=f"{gateway.url}/v1") as client:
        texts = embeddings.sync(client=client, body=OpenAIEmbeddingInputText(input_=["a dog", "a cat"]))
        images = embeddings.sync(client=client, body=OpenAIEmbeddingInputImage(input_=image, model="words"))
        refused = embeddings.sync_detailed(client=client, body=OpenAIEmbeddingInputImage(input_="https://127.0.0.1/cat.jpg"))
    assert isinstance(texts, OpenAIEmbeddingResult) and isinstance(images, OpenAIEmbeddingResult)
    np.testing.assert_array_equal(np.array([one.embedding for one in texts.data], np.float32), [text_vector("a dog"), text_vector("a cat")])
    np.testing.assert_array_equal(np.array(images.data[0].embedding, np.float32), color_vector(84, 40, 90))
    assert refused.status_code == 400 and b"URLs are not fetched" in refused.content
