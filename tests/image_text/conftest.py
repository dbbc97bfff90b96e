from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.bundle_schema import Rung
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.vit import write_tiny_vit
from tests.support.live_service import SMALL_LIMITS, running
from tests.support.task_clients import TEMPLATES, Speaker


@pytest.fixture(scope="package")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    """Two gateways and a worker that serves a pair of each kind, `mute` without a tokenizer, and `tiny`, a classifier.

    `cit` has a default rung, which vectors do not take unasked."""
    bundles = tmp_path_factory.mktemp("bundles")
    pairs = [write_tiny_pair(bundles, "cit", templates=TEMPLATES, ladder=[Rung(name="fast", schedule=[4, 1])], default_rung="fast")]
    pairs += [write_tiny_pair(bundles, name, architecture=architecture) for name, architecture in (("maws", "maws_clip"), ("flip", "flip"))]
    write_tiny_pair(bundles, "mute", tokenizer=False)
    write_tiny_vit(bundles)
    settings = {
        "default_models": {"embed": "cit", "zero-shot": "cit"},
        "text_cache_bytes": 400_000,
        "trusted_proxies": ["127.0.0.1"],  # so that tests can be several clients
    }
    with running(bundles, gateways=2, **SMALL_LIMITS, **settings) as started:
        yield Speaker(started, {bundle.spec.name: bundle for bundle in pairs})
