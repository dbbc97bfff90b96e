"""Which bundles of a folder a worker loads, and in which order."""

from __future__ import annotations

from pathlib import Path

from models.bundle import Bundle
from server.worker.loaded_bundles import LoadedBundles
from server.worker.warmup import Warm
from tests.bundles import write_null, write_tiny_vit


def test_the_smallest_is_ready_first_whatever_its_name(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path, "a-large-one")
    write_null(tmp_path, "small")
    loaded: list[str] = []

    def warm_up(bundle: Bundle) -> Warm:
        loaded.append(bundle.spec.name)
        raise RuntimeError("the order is all that is asked for")

    LoadedBundles(tmp_path, warm_up, lambda spec: None, lambda: None).refresh({})
    assert loaded == ["small", "a-large-one"]
