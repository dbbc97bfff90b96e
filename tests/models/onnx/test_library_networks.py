"""Classifiers of timm and transformers answer here as they do in their libraries, each prepared by its own library there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import reference
from benchmarks.onnx_classifiers import COMPARED, MOST, NETWORKS, Network, largest_difference, prepare
from tests.harness.running import Service, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    reference.write_pictures(folder, COMPARED)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def networks(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    folder, opened = tmp_path_factory.mktemp("networks"), [Image.open(path).convert("RGB") for path in pictures]
    return {name: prepare(name, folder, opened) for name in NETWORKS}


@pytest.fixture(scope="module")
def service(networks: Mapping[str, Network], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("all")
    for network in networks.values():
        (bundles / network.name).symlink_to(network.bundles / network.name)
    with running(bundles) as started:
        yield started


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_library(service: Service, networks: Mapping[str, Network], pictures: list[Path], name: str) -> None:
    network = networks[name]
    assert network.logits.std(axis=0).mean() > 1  # the images differ
    assert largest_difference(service.url, network, [path.read_bytes() for path in pictures]) <= MOST
