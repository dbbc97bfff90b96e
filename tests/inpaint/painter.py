"""Requests to a running service that fills holes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np

from tests.harness.gateway import Gateway, refused
from tests.harness.pictures import decoded
from tests.harness.running import Service

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
