"""Classifiers of timm and transformers answer here as they do in their libraries, each prepared by its own library there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import reference
from benchmarks.onnx_classifiers import COMPARED, MAX_DIFFERENCE, NETWORKS, largest_difference, prepare
from tests.support.live_service import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    reference.write_pictures(folder, COMPARED)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_library(name: str, pictures: list[Path], tmp_path: Path) -> None:
    network = prepare(name, tmp_path, [Image.open(path).convert("RGB") for path in pictures])
    assert network.logits.std(axis=0).mean() > 1  # the images differ
    with running(network.bundles) as service:
        assert largest_difference(service.url, network, [path.read_bytes() for path in pictures]) <= MAX_DIFFERENCE
