"""Two hundred clients at once: everyone gets the answer to their own picture."""

from __future__ import annotations

import asyncio

import httpx2
import numpy as np

from models.bundle import read
from tests.support.bundles.vit import expected_scores
from tests.support.images import picture
from tests.support.serve_process import Service

CLIENTS = 200


async def test_two_hundred_clients_get_answers_to_their_own_images(service: Service) -> None:
    async with httpx2.AsyncClient(base_url=service.url, timeout=120, limits=httpx2.Limits(max_connections=CLIENTS)) as http:
        requests = [http.post("/v1/classify", content=picture(seed), params={"model": "tiny", "top_k": 10}) for seed in range(CLIENTS)]
        answers = await asyncio.gather(*requests)
    assert [answer.status_code for answer in answers] == [200] * CLIENTS
    scores = np.empty((CLIENTS, 10))
    for seed, answer in enumerate(answers):
        for prediction in answer.json()["results"][0]["predictions"]:
            scores[seed, prediction["index"]] = prediction["score"]
    expected = expected_scores(read(service.bundles / "tiny" / "1"), range(CLIENTS))
    np.testing.assert_allclose(scores, expected, atol=1e-3)
