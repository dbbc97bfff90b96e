from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_vectors import answer, make_encoder, make_pair
from tests.support.fake_worker import Worker
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.redis import private_valkey

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(scope="package")
def gateway() -> Iterator[Gateway]:
    """Serves the pair `words`, its default for vectors, and an encoder of images."""
    with (
        private_valkey() as server,
        Worker(server.url, [make_pair(), make_encoder()], answer),
        gateway_process(server.url, default_models={"embed": "words"}) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def nothing_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse at once every other connection of a client, such as telemetry or files of tokenizers."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, CLOSED_PORT)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
