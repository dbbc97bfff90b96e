"""Requests to a running service with pairs, and what their networks say by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.loading import load
from server.media.images import Decoder, to_model_size
from server.tasks.texts import packed, vectors
from tests.harness.gateway import Gateway, refused
from tests.harness.pictures import picture as random_pixels
from tests.harness.reds import picture
from tests.harness.running import Service

TEMPLATES = ["a photo of the {}", "{}"]
"""Those of `cit`; the others have `{}` alone."""
PICTURES = [picture(step, size=(40 + step, 32)) for step in range(4)]
NOISE = [random_pixels(seed) for seed in range(4)]
"""Images whose vectors merging moves: patches of the others are almost alike."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Speaker:
    service: Service
    pairs: Mapping[str, Bundle]

    @property
    def gateway(self) -> Gateway:
        return self.service.gateway

    def ask(
        self, task: str, images: Sequence[bytes] = (), gateway: int = 0, headers: Mapping[str, str] | None = None, **more: Any
    ) -> httpx2.Response:
        """As a form; options and texts are fields, lists repeated ones."""
        files = [("image", ("image", content)) for content in images]
        fields = [(name, (None, str(value))) for name, given in more.items() for value in (given if isinstance(given, list) else [given])]
        return self.service.gateways[gateway].http.post(f"/v1/{task}", files=[*files, *fields], headers=headers)

    def answered(self, task: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        response = self.ask(task, *arguments, **more)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refused(self, status: int, task: str, *arguments: Any, **more: Any) -> tuple[str | None, str]:
        return refused(self.ask(task, *arguments, **more), status)

    def vectors_of_texts(self, pair: str, texts: Sequence[str]) -> Vectors:
        """(n, dim), each text in a batch of its own."""
        model = load(self.pairs[pair])
        found = []
        for text in texts:
            (job,) = packed([text])
            outputs = model.forward({name: array[None] for name, array in job.items()}, {})
            found.append(vectors([{**{name: rows[0] for name, rows in outputs.items()}, **job}])[0][0])
        return np.stack(found)

    def vectors_of_images(self, pair: str, images: Sequence[bytes], **options: Any) -> Vectors:
        model, spec = load(self.pairs[pair]), self.pairs[pair].spec
        rows = []
        for content in images:
            with Decoder(10**6).decoded(content) as image:
                rows.append(to_model_size(image, spec.pictures, 10**6))
        return model.forward({"pixels": np.stack(rows)}, options)["embedding"]


def cosines(some: Any, others: Any) -> Vectors:
    """Of rows with rows of the same places."""
    left, right = np.asarray(some, np.float64), np.asarray(others, np.float64)
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
