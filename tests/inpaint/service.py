"""Requests to a running service that fills holes, and the images for them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.gateway.service import Gateway
from tests.open_inference.service import Service

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
    ) -> httpx.Response:
        """options, also in place of the mask: `words`."""
        if "words" in options:
            options["mask"] = options.pop("words")
        files = {"image": ("image", image)} | ({} if mask is None else {"mask": ("mask", mask)})
        return self.gateway.http.post("/v1/inpaint", files=files, data={"steps": 2, **options}, headers=headers)

    def filled(self, image: bytes, mask: bytes | None = None, **options: Any) -> np.ndarray:
        answer = self.fill(image, mask, **options)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        return decoded(answer.content)

    def refused(self, status: int, image: bytes, mask: bytes | None = None, **options: Any) -> tuple[str, str]:
        """Field and detail of the problem."""
        answer = self.fill(image, mask, **options)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        return problem["field"], problem["detail"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


def box_mask(height: int, width: int, box: tuple[int, int, int, int]) -> bytes:
    """White in a box (left, top, right, bottom)."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return encoded(mask)


def outside(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Where such a mask is black."""
    return decoded(box_mask(height, width, box)) == 0
