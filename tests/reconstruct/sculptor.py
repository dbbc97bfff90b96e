"""Requests to a running service that reconstructs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.harness.captures import CAPTURE, FOV
from tests.harness.gateway import Gateway, refused
from tests.harness.running import Service



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
