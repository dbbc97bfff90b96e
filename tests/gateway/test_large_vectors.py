"""Answers with many vectors, whose JSON is written a vector at a time, hold what small ones do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from server.gateway.fair_executor import FairExecutor
from server.gateway.inference.rendering import ResponseRenderer
from server.gateway.inference.stages import AnsweredRequest, Timing
from server.media.memory_budget import MemoryBudget
from server.tasks.embedding.embed import INLINE_BYTES, EmbedOptions, EmbedTask
from tests.support.fake_vectors import make_encoder

TASK, SPEC = EmbedTask(), make_encoder()
TIMING = Timing(0.0, 0.0, 0.0, 0.0, 0.0, 1)


async def render(outputs: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    unused: Any = None  # vectors are not scenes
    renderer = ResponseRenderer(unused, FairExecutor(2), MemoryBudget(1 << 30))
    plan = TASK.plan(EmbedOptions(**options), SPEC)
    assert TASK.present_in_thread(outputs, plan)
    response = await renderer.present(AnsweredRequest(TASK, SPEC, plan, outputs, TIMING, "application/json", "", "", "one"))
    await renderer.close()
    body: dict[str, Any] = json.loads(response.body)
    assert list(body) == ["id", "model", "version", "kind", "dim", "normalized", "embeddings", "truncated", "timing"]
    return body


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_vectors_of_many_images(encoding: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    assert vectors.nbytes > INLINE_BYTES
    body = await render([{"embedding": row, "tokens": np.array([5, 5], np.int32)} for row in vectors], encoding=encoding)
    if encoding == "float":
        assert body["embeddings"] == vectors.tolist()
    else:
        assert len(body["embeddings"]) == 64 and all(isinstance(row, str) for row in body["embeddings"])


async def test_vectors_of_many_tokens() -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 4, 2048), np.float32)
    sizes, owners = np.array([1, 2, 1, 0], np.int32), np.array([1, 0, 2, 1], np.int32)
    body = await render([{"vectors": rows, "sizes": sizes, "owners": owners} for rows in vectors], output="tokens")
    for rows, one in zip(vectors, body["embeddings"], strict=True):
        assert one == {"vectors": rows.tolist(), "sizes": [1, 2, 1, 0], "patches": [[1], [0, 3], [2], []]}
