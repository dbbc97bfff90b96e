"""Clients of a running service for inpainting, reconstruction and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.loading import load
from server.media.images import ImageDecoder, to_model_size
from server.tasks.embedding.text_jobs import pack_texts, vectors
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway, refused
from tests.support.images import CAPTURE, FOV, decoded
from tests.support.images import picture as random_pixels
from tests.support.live_service import Service

JSON = {"Accept": "application/json"}
SIDE = 16
"""What the bundle `painter` takes."""


@dataclass(frozen=True)
class Painter:
    service: Service

    @property
    def gateway(self) -> Gateway:
        return self.service.gateway

    def fill(
        self,
        image: bytes,
        mask: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> httpx2.Response:
        """options, also in place of the mask: `words`."""
        if "words" in options:
            options["mask"] = options.pop("words")
        files = {"image": ("image", image)} | ({} if mask is None else {"mask": ("mask", mask)})
        return self.gateway.http.post("/v1/inpaint", files=files, data={"steps": 2, **options}, headers=headers)

    def filled(self, image: bytes, mask: bytes | None = None, **options: Any) -> np.ndarray:
        answer = self.fill(image, mask, **options)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        return decoded(answer.content)

    def refused(self, status: int, image: bytes, mask: bytes | None = None, **options: Any) -> tuple[str | None, str]:
        return refused(self.fill(image, mask, **options), status)


@dataclass(frozen=True)
class Sculptor:
    service: Service

    @property
    def gateway(self) -> Gateway:
        return self.service.gateway

    def ask(self, *, headers: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None, **options: Any) -> httpx2.Response:
        """Of the capture, unless other files are given."""
        sent = {name: (name, content) for name, content in (CAPTURE if files is None else files).items()}
        if files is None or ("depth" in files and not {"fov", "fx"} & options.keys()):
            options = {"fov": FOV, **options}
        options = {name: value for name, value in options.items() if value is not None}
        return self.gateway.http.post("/v1/reconstruct", files=sent, data=options, headers=headers)

    def answered(self, **options: Any) -> httpx2.Response:
        response = self.ask(**options)
        assert response.status_code == 200, response.text
        return response

    def refused(self, status: int, **options: Any) -> tuple[str | None, str]:
        return refused(self.ask(**options), status)


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
            (job,) = pack_texts([text])
            outputs = model.forward({name: array[None] for name, array in job.items()}, {})
            found.append(vectors([{**{name: rows[0] for name, rows in outputs.items()}, **job}])[0][0])
        return np.stack(found)

    def vectors_of_images(self, pair: str, images: Sequence[bytes], **options: Any) -> Vectors:
        model, spec = load(self.pairs[pair]), self.pairs[pair].spec
        rows = []
        for content in images:
            with ImageDecoder(10**6).decode(content) as image:
                rows.append(to_model_size(image, spec.image_preprocess, 10**6))
        return model.forward({"pixels": np.stack(rows)}, options)["embedding"]


def cosines(some: Any, others: Any) -> Vectors:
    """Of rows with rows of the same places."""
    left, right = np.asarray(some, np.float64), np.asarray(others, np.float64)
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
