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
from server.tasks.embedding.vector_jobs import pack_texts, vectors
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway, refusal
from tests.support.images import CAPTURE, FOV, decode
from tests.support.images import picture as random_pixels
from tests.support.live_service import Service

JSON = {"Accept": "application/json"}
SIDE = 16
"""Side of the images of the bundle `painter`, in pixels."""


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
        """Fill a hole. options: also `words`, which replace the mask."""
        if "words" in options:
            options["mask"] = options.pop("words")
        files = {"image": ("image", image)} | ({} if mask is None else {"mask": ("mask", mask)})
        return self.gateway.http.post("/v1/inpaint", files=files, data={"steps": 2, **options}, headers=headers)

    def fill_and_decode(self, image: bytes, mask: bytes | None = None, **options: Any) -> np.ndarray:
        answer = self.fill(image, mask, **options)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        return decode(answer.content)

    def refusal(self, status: int, image: bytes, mask: bytes | None = None, **options: Any) -> tuple[str | None, str]:
        return refusal(self.fill(image, mask, **options), status)


@dataclass(frozen=True)
class Sculptor:
    service: Service

    @property
    def gateway(self) -> Gateway:
        return self.service.gateway

    def ask(self, *, headers: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None, **options: Any) -> httpx2.Response:
        """Send the capture, unless there are other files."""
        sent = {name: (name, content) for name, content in (CAPTURE if files is None else files).items()}
        if files is None or ("depth" in files and not {"fov", "fx"} & options.keys()):
            options = {"fov": FOV, **options}
        options = {name: value for name, value in options.items() if value is not None}
        return self.gateway.http.post("/v1/reconstruct", files=sent, data=options, headers=headers)

    def run(self, **options: Any) -> httpx2.Response:
        response = self.ask(**options)
        assert response.status_code == 200, response.text
        return response

    def refusal(self, status: int, **options: Any) -> tuple[str | None, str]:
        return refusal(self.ask(**options), status)


TEMPLATES = ["a photo of the {}", "{}"]
"""Templates of `cit`; the others have `{}` alone."""
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
        self, task: str, images: Sequence[bytes] = (), gateway: int = 0, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> httpx2.Response:
        """Send a form; options and texts are fields, lists repeated ones."""
        files = [("image", ("image", content)) for content in images]
        fields = [
            (name, (None, str(value))) for name, inputs in extra.items() for value in (inputs if isinstance(inputs, list) else [inputs])
        ]
        return self.service.gateways[gateway].http.post(f"/v1/{task}", files=[*files, *fields], headers=headers)

    def run(self, task: str, *arguments: Any, **extra: Any) -> dict[str, Any]:
        response = self.ask(task, *arguments, **extra)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refusal(self, status: int, task: str, *arguments: Any, **extra: Any) -> tuple[str | None, str]:
        return refusal(self.ask(task, *arguments, **extra), status)

    def vectors_of_texts(self, pair: str, texts: Sequence[str]) -> Vectors:
        """Embed each text in a batch of its own: (n, dim)."""
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
    """Compute the cosines of rows with the rows of the same positions."""
    left, right = np.asarray(some, np.float64), np.asarray(others, np.float64)
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
