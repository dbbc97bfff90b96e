from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.serve_process import Service, serve


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny@1`, a ViT of random weights, and `null@1`, which takes 5 ms a batch."""
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(root)
    write_null(root)
    return root


@pytest.fixture(scope="package")
def service(bundles: Path) -> Iterator[Service]:
    """The whole service, ready, for tests that leave it as they found it; `tiny` is the default model.

    In float32 on every machine: some of the pictures differ by less than what bfloat16 rounds away."""
    with serve(bundles, dtype="float32", default_models='{"classify": "tiny"}') as running:
        assert running.url
        yield running
