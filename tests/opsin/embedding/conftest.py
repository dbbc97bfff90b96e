from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.vit import write_tiny_encoder
from tests.support.live_service import Service, running

MAX_IMAGES = 4
"""Images of one request to the `embedding_service`."""
MAX_BODY = 150_000
"""Maximum size of a request's body in bytes."""
NOTE = "It knows drawings. For [dim]photographs import SigLIP or CLIP: opsin import hf://google/siglip-base-patch16-224 -o bundles/siglip"
"""A note with text that rich would take for markup, and longer than a line of a file."""


@pytest.fixture(scope="package")
def embedding_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pair@1`, which reads texts, `encoder@1` and `changing@1`, which see images alone, and `drawings@1`, a pair with a
    note."""
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_pair(root, "pair", templates=["a photo of a {}.", "a {}"])
    write_tiny_encoder(root)
    write_tiny_encoder(root, "changing")
    write_tiny_pair(root, "drawings", note=NOTE)
    return root


@pytest.fixture(scope="package")
def embedding_service(embedding_bundles: Path) -> Iterator[Service]:
    """A service with them; the pair embeds by default."""
    limits = {"max_images": MAX_IMAGES, "max_body_bytes": MAX_BODY}
    with running(embedding_bundles, default_models={"embed": "pair", "zero-shot": "pair"}, model_control="explicit", **limits) as started:
        yield started
